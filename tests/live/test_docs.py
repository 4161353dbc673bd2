"""The documentation's examples, run as they stand there, and its links.

Every fence of every page is of a language that is known here, and what can be run is run: Python and SQL from top to
bottom in one namespace for a page, with a database of its own in the place of `postgresql://localhost/app`; commands
as far as they end by themselves. What the tests add to a page is described in `pages.py`.
"""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from conftest import until
from pages import PAGES, ROOT, Page, Piece, fences, name, pieces, prose

OWN = {("README.md", "example"), ("docs/reliability.md", "cache"), ("docs/guide/lifecycle.md", "service")}
OWN |= {("docs/index.md", "first"), *(("README.md", mark) for mark in ("callbacks", "stream", "fastapi"))}  # below
WITH_TESTS = {"docs/testing.md": "tests/testing/test_page.py"}  # pages whose own tests see that all Python is run
IN_CI = {("README.md", "demo"), ("README.md", "test")}  # .ci/run runs them
RUN = {"python", "pycon", "sql", "plpgsql", "sh", "json", "ini"}
FOR_READING = {"text", "js", "html", "yaml"}
SIGNATURES = {"pyi"}  # tests/unit/test_api_page.py compares them with the code
TESTS = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]


def elsewhere(piece: Piece) -> bool:
    """Whether another test runs the piece."""
    if (name(piece.page), piece.mark) in OWN | IN_CI:
        return True
    if piece.mark.startswith("run by "):
        path = ROOT / piece.mark.removeprefix("run by ")
        assert path.is_file(), f"{piece.place}: there is no {path}"
        assert piece.page.name in path.read_text(), f"{piece.place}: {path} does not name the page"
        return True
    if piece.page.parent.name == "recipes" and piece.language in ("python", "sql", "plpgsql") and not piece.hidden:
        # The test of a recipe names the page, and each of its blocks by their marks, where there is more than one.
        quoted = f'"{piece.page.name}"'
        tests = [text for test in TESTS if quoted in (text := test.read_text())]
        assert tests, f"{piece.place}: no test names the recipe"
        alone = sum(other.language == piece.language for other in pieces(piece.page)) == 1
        words = (f'"{piece.mark}"', f"*blocks({quoted})") if piece.mark else ()
        known = alone or any(word in text for text in tests for word in words)
        assert known, f"{piece.place}: no test of the recipe names that block ({piece.mark!r})"
        return True
    if name(piece.page) in WITH_TESTS and piece.language == "python":
        path = ROOT / WITH_TESTS[name(piece.page)]
        assert f'"{piece.page.name}"' in path.read_text(), f"{piece.place}: {path} does not name the page"
        return True
    assert piece.mark in ("", "alone"), f"{piece.place}: nothing is known of the mark {piece.mark!r}"
    return False


@pytest.fixture
def database(server: str) -> Iterator[str]:
    """The URI of a database of this test's own."""
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute("create database docs")
        yield server.replace("/postgres?", "/docs?")
        conn.execute("drop database docs with (force)")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_a_page_shows_runs(page: Path, database: str) -> None:
    runner = Page(database)
    try:
        for piece in pieces(page):
            assert piece.language in RUN | FOR_READING | SIGNATURES, f"{piece.place}: a fence of an unknown language"
            if piece.language in RUN and not elsewhere(piece):
                try:
                    runner.run(piece)
                except Exception as error:
                    raise AssertionError(f"{piece.place} does not run: {error}") from error
    finally:
        runner.end()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_is_among_the_pieces(page: Path) -> None:
    """None hides in a list or a quotation, where it would not be run."""
    assert fences(page) == 2 * len([piece for piece in pieces(page) if not piece.hidden])


def anchor(heading: str) -> str:
    """As GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", prose(page)):
        link = "".join(target)
        if re.match(r"https?://", link):
            continue
        path, _, part = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)}: {link} leads nowhere"
        if part:
            headings = re.findall(r"^#+ (.*)$", prose(there), re.MULTILINE)
            assert part in map(anchor, headings), f"{name(page)}: {link} has no such heading"


def block(path: str, mark: str) -> str:
    """The code after `<!-- mark -->`."""
    (found,) = (piece for piece in pieces(ROOT / path) if piece.mark == mark)
    return found.code


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
        process.communicate()
    assert lines == [
        "read all orders: listening has begun\n",
        "billing heard on orders: {'id': 42, 'op': 'INSERT'}\n",
    ]
    assert rest == ""


@pytest.mark.parametrize(
    ("mark", "first", "heard"),
    [
        ("callbacks", "", "orders {'id': 42}\n"),
        ("stream", "Listening(channels=('orders',), gaps=())\n", "Notification(channel='orders', payload={'id': 42}"),
    ],
)
def test_the_readme_begins_with(
    server: str, sender: psycopg.Connection[Any], mark: str, first: str, heard: str
) -> None:
    text = block("README.md", mark).replace("postgresql://localhost/app", server)
    process = subprocess.Popen([sys.executable, "-u", "-c", text], stdout=subprocess.PIPE, text=True)
    ended = threading.Event()

    def notify() -> None:
        while not ended.wait(0.05):
            sender.execute("select pg_notify('orders', '{\"id\": 42}')")

    notifying = threading.Thread(target=notify)
    notifying.start()
    try:
        assert process.stdout is not None
        assert first in ("", process.stdout.readline())
        assert process.stdout.readline().startswith(heard)
    finally:
        ended.set()
        notifying.join()
        process.kill()
        process.communicate()


def test_the_readme_in_fastapi(
    server: str, sender: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    exec(block("README.md", "fastapi").replace("postgresql://localhost/app", server), names)
    app, notifier = names["app"], names["notifier"]
    assert {"/health"} <= {route.path for route in app.routes}

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            assert names["health"]() == {"connected": True}
            await asyncio.to_thread(sender.execute, "select pg_notify('orders', '{\"id\": 42}')")
            await asyncio.to_thread(until, lambda: notifier.status()["delivered"] == 1)

    asyncio.run(serve())
    assert capsys.readouterr().out == "orders {'id': 42}\n"
    assert names["health"]() == {"connected": False}


def test_the_cache_example(server: str, sender: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 10: a cache that reads again in on_listen is right after any fault."""
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


@pytest.mark.parametrize(
    ("page", "mark", "ready", "heard", "signum"),
    [
        ("docs/index.md", "first", "listening\n", "billing heard on orders: {'id': 42}\n", signal.SIGINT),
        ("docs/guide/lifecycle.md", "service", "ready\n", "{'id': 42}\n", signal.SIGTERM),
    ],
)
def test_a_program_that_waits(server: str, page: str, mark: str, ready: str, heard: str, signum: int) -> None:
    """Guarantee 11: it hears, and ends on a signal."""
    text = block(page, mark).replace("postgresql://localhost/app", server)
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == ready
        with psycopg.connect(server) as conn:
            conn.execute("select pg_notify('orders', '{\"id\": 42}')")
        assert process.stdout.readline() == heard
        process.send_signal(signum)
        rest, errors = process.communicate(timeout=10)
        assert rest == ""
        if signum == signal.SIGTERM:  # the page catches KeyboardInterrupt too, the first program does not
            assert (errors, process.returncode) == ("", 0)
    finally:
        process.kill()
        process.communicate()
