"""Guarantees 8 and 9 in a web application: the recipe in docs/recipes/web.md, as it stands there, under uvicorn."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import until

from .conftest import Database
from .page import write


class Server:
    """The recipe's application under uvicorn, in a process of its own."""

    def __init__(self, database: str, folder: Path) -> None:
        write("asyncio.md", folder, "listening.py")
        write("web.md", folder, "app.py")
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "uvicorn", "app:app", "--port", "0"],
                cwd=folder,
                stderr=log,
                stdout=log,
                env={**os.environ, "DATABASE_URL": database},
            )
        until(lambda: self.process.poll() is not None or "Uvicorn running" in self.text, 20)
        found = re.search(r"http://127.0.0.1:(\d+)", self.text)
        assert found is not None, self.text
        self.port = int(found[1])

    @property
    def text(self) -> str:
        return self.log.read_text()

    def health(self, status: int = 200) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            assert response.status == status
            return dict(json.loads(response.read()))
        finally:
            connection.close()


class Client:
    """A browser's EventSource, as far as it goes."""

    def __init__(self, server: Server, channel: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        self.connection.request("GET", f"/events/{channel}", headers={"Accept": "text/event-stream"})
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        assert self.response.headers["Content-Type"].startswith("text/event-stream")

    def next(self) -> tuple[str, Any]:
        """The next event: its kind and its data."""
        lines = []
        while line := self.response.readline().decode().rstrip("\n"):
            lines.append(line)
        kind, data = (line.split(": ", 1)[1] for line in lines)
        return kind, json.loads(data)

    def ended(self) -> bool:
        return self.response.readline() == b""

    def close(self) -> None:
        self.response.close()
        self.connection.close()


@pytest.fixture
def web(database: Database, tmp_path: Path) -> Iterator[Server]:
    web = Server(database.dsn, tmp_path)
    yield web
    web.process.kill()
    web.process.wait(10)


def test_events_come_and_a_client_that_goes_is_unsubscribed(web: Server, database: Database) -> None:
    """Guarantees 8, 9, 10: each client is a subscriber, from its `ready` until it goes away."""
    first, second, other = Client(web, "orders"), Client(web, "orders"), Client(web, "customers")
    for client, channel in ((first, "orders"), (second, "orders"), (other, "customers")):
        assert client.next() == ("ready", {"channel": channel})
    assert web.health()["clients"] == 3
    assert web.health()["active"] == ["customers", "orders"]
    database.execute("""select pg_notify('orders', '{"id": 42, "note": "line\\none"}')""")
    database.execute("select pg_notify('orders', 'text')")
    for client in (first, second):
        assert client.next() == ("notification", {"id": 42, "note": "line\none"})
        assert client.next() == ("notification", "text")
    first.close()
    other.close()
    until(lambda: web.health()["clients"] == 1)
    assert web.health()["active"] == ["orders"]
    database.execute("select pg_notify('orders', '1')")
    assert second.next() == ("notification", 1)
    assert select.select([second.connection.sock], [], [], 0.05)[0] == []
    second.close()
    until(lambda: web.health()["active"] == [])
    assert "Traceback" not in web.text


def test_a_client_is_told_of_a_gap(web: Server, database: Database) -> None:
    """Guarantee 10: after the session was killed, before what comes later; /health tells meanwhile."""
    client = Client(web, "orders")
    assert client.next() == ("ready", {"channel": "orders"})
    with database.unreachable():
        until(lambda: web.health(503)["connected"] is False)
        database.execute("select pg_notify('orders', '\"missed\"')")
    assert client.next() == ("gap", {"channel": "orders"})
    database.execute("select pg_notify('orders', '\"heard\"')")
    assert client.next() == ("notification", "heard")
    client.close()


def test_what_is_not_offered_is_refused(web: Server) -> None:
    """A client cannot make the server listen to just anything."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    connection.request("GET", "/events/secrets")
    assert connection.getresponse().status == 404
    connection.close()
    assert web.health()["clients"] == 0


def test_a_client_that_does_not_read_harms_only_itself(web: Server, database: Database) -> None:
    """Guarantee 9: its mailbox is full, the other gets all of it."""
    stuck, other = Client(web, "orders"), Client(web, "orders")
    assert other.next() == ("ready", {"channel": "orders"})
    for part in range(8):
        database.execute(
            "select pg_notify('orders', format('[%%s, %%s, \"%%s\"]', %s::int, i, repeat('x', 6000)))"
            " from generate_series(0, 499) i",
            (part,),
        )
        for i in range(500):
            kind, data = other.next()
            assert (kind, data[:2]) == ("notification", [part, i])
    assert web.health()["dropped"] > 0
    assert web.health()["pending"] <= 1000
    stuck.close()
    other.close()
    until(lambda: web.health()["clients"] == 0)
    assert "Traceback" not in web.text


def hang_up(port: int, channel: str, after: float, abruptly: bool) -> None:
    """Ask for a stream, and close the connection so many seconds later, whatever has come."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET /events/{channel} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(after)
        if abruptly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_clients_that_hang_up_in_waves_leave_nothing_behind(web: Server, database: Database) -> None:
    """Guarantee 17: whenever they hang up, with notifications under way; the server stops cleanly afterwards."""
    chance = random.Random(17)
    stay = Client(web, "customers")
    assert stay.next()[0] == "ready"
    for _ in range(4):
        clients = [
            threading.Thread(
                target=hang_up,
                args=(
                    web.port,
                    chance.choice(["orders", "customers"]),
                    chance.uniform(0, 0.2),
                    chance.random() < 0.5,
                ),
            )
            for _ in range(25)
        ]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            database.execute("select pg_notify('orders', i::text) from generate_series(1, 20) i")
            time.sleep(0.005)
        for client in clients:
            client.join()
    until(lambda: (web.health()["clients"], web.health()["active"]) == (1, ["customers"]))
    stay.close()
    until(lambda: (web.health()["clients"], web.health()["active"]) == (0, []))
    web.process.send_signal(signal.SIGTERM)
    web.process.wait(10)
    assert "Application shutdown complete" in web.text
    assert "Traceback" not in web.text


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_server_stops_cleanly(web: Server, signum: signal.Signals, database: Database) -> None:
    """Guarantee 11: with streams open; they end, and so does the session."""
    clients = [Client(web, "orders") for _ in range(3)]
    for client in clients:
        assert client.next()[0] == "ready"
    began = time.monotonic()
    web.process.send_signal(signum)
    assert all(client.ended() for client in clients)
    code = web.process.wait(10)
    assert time.monotonic() - began < 4
    assert code in (0, -signum), web.text
    assert "Application shutdown complete" in web.text
    for word in ("Traceback", "ERROR", "WARNING", "Warning"):
        assert word not in web.text, web.text
    until(lambda: database.listeners() == [])
    for client in clients:
        client.close()
