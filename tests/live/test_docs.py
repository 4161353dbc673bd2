"""The documentation's examples, run as they stand there."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from conftest import until

ROOT = Path(__file__).parents[2]


def block(path: str, mark: str) -> str:
    """The code after `<!-- mark -->`."""
    found = re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)
    assert found is not None, f"{path} has no {mark} example"
    return found[1]


def test_the_readme_example(server: str) -> None:
    text = block("README.md", "example").replace("postgresql://localhost/app", server)
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert lines == [
        "read all orders: listening has begun\n",
        "billing heard on orders: {'id': 42, 'op': 'INSERT'}\n",
    ]
    assert rest == ""


def test_the_cache_example(server: str, sender: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 10: a cache that reads again in on_listen is right after any fault."""
    sender.execute("create table if not exists prices (item text primary key, price int)")
    sender.execute("insert into prices values ('tea', 1)")
    monkeypatch.setattr(sys, "argv", ["prices", server])
    names: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: exec(block("docs/reliability.md", "cache"), names))
    thread.start()
    try:
        until(lambda: "n" in names and names["prices"].read_again.is_set())
        n, prices = names["n"], names["prices"]
        assert prices.by_item == {"tea": 1}
        n.notify("prices", {"item": "tea", "price": 2})
        until(lambda: prices.by_item == {"tea": 2})
        for price in range(3, 8):
            prices.read_again.clear()
            until(lambda: n.status()["connected"])
            with sender.transaction():  # changed while nobody can be told
                sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
                sender.execute("update prices set price = %s", (price,))
            until(lambda price=price: prices.by_item == {"tea": price} and prices.read_again.is_set())
    finally:
        if "n" in names:
            names["n"].stop()
        thread.join(10)
        sender.execute("drop table prices")
