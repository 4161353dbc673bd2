"""docs/recipes/systemd.md: guarantees 2 and 11, as systemd sees them; this test stands in for systemd's socket."""

from __future__ import annotations

import configparser
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import until

from .conftest import Database
from .page import RECIPES, blocks, process

PAGE = (RECIPES / "systemd.md").read_text()


@pytest.fixture(params=["a file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What systemd listens on, and its address as a service is told it."""
    address = str(tmp_path / "notify") if request.param == "a file" else f"\0pgnotifier-{tmp_path}"[:100]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(0.01)
        yield sock, address.replace("\0", "@", 1)


def test_the_service(database: Database, tmp_path: Path, manager: tuple[socket.socket, str]) -> None:
    """Ready when it listens; the watchdog is fed while connected and while not, and not while a call hangs."""
    sock, address = manager
    code = blocks("systemd.md")["service.py"].replace("max_call=20", "max_call=0.5")
    code = code.replace("    print(payload", "    payload == 'hang' and n.wait(3)\n    print(payload")
    (tmp_path / "service.py").write_text(code)
    told: list[str] = []

    def last() -> str:
        try:
            while True:
                told.append(sock.recv(4096).decode())
        except TimeoutError:
            return told[-1] if told else ""

    with ExitStack() as stack:
        with database.unreachable():
            environment = {"DATABASE_URL": database.dsn, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
            child = stack.enter_context(process(tmp_path, "service.py", **environment))
            until(lambda: "not connected yet" in (tmp_path / "log").read_text(), 20)
            assert last() == ""
        until(lambda: "WATCHDOG=1\nSTATUS=listening" in last(), 20)
        assert told[0] == "READY=1"
        database.execute("select pg_notify('orders', '{\"id\": 42}')")
        until(lambda: "{'id': 42}" in (tmp_path / "log").read_text())
        with database.unreachable():
            until(lambda: last().startswith("WATCHDOG=1\nSTATUS=not connected since"))
        until(lambda: last() == "WATCHDOG=1\nSTATUS=listening", 40)
        database.execute("select pg_notify('orders', 'hang')")
        until(lambda: starved(sock))  # and `systemctl status` says why
        until(lambda: last() == "WATCHDOG=1\nSTATUS=listening")
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
        assert last() == "STOPPING=1"


def starved(sock: socket.socket) -> bool:
    """Whether the watchdog is not fed for as long as systemd would wait."""
    deadline = time.monotonic() + 0.3
    told = "STATUS="
    while time.monotonic() < deadline:
        try:
            told = sock.recv(4096).decode()
        except TimeoutError:
            continue
        if "WATCHDOG=1" in told:
            return False
    return told.startswith("STATUS=subscriber 'billing' has been running for")


def test_without_systemd(database: Database, tmp_path: Path) -> None:
    """It tells nobody, and runs."""
    (tmp_path / "service.py").write_text(blocks("systemd.md")["service.py"])
    with process(tmp_path, "service.py", DATABASE_URL=database.dsn) as child:

        def heard() -> bool:
            database.execute("select pg_notify('orders', '1')")
            return (tmp_path / "log").read_text().startswith("1\n")

        until(heard, 20)  # the session is there before it listens
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0


def test_the_unit_agrees_with_the_program() -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read_string(re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)[0])
    service, code = unit["Service"], blocks("systemd.md")["service.py"]
    (wait,) = re.findall(r"connect_wait=(\d+)", code)
    assert int(service["TimeoutStartSec"]) > int(wait)
    assert int(service["TimeoutStopSec"]) > 10  # seconds, of `stop`
    assert service["Type"] == "notify"
    assert service["ExecStart"].endswith("/opt/service/service.py")
