"""docs/recipes/web.md, as it stands there, under uvicorn: guarantees 9, 10 and 17 in web applications."""

from __future__ import annotations

import http.client
import itertools
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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import until

from .conftest import Database
from .page import process, write

FILES = {"starlette": "app.py", "fastapi": "api.py", "litestar": "star.py"}


class Server:
    """The recipe's application under uvicorn, in a process of its own."""

    def __init__(self, database: str, folder: Path, framework: str = "starlette", *options: str) -> None:
        write("web.md", folder, "events.py", "lifespan.py", FILES[framework])
        module = FILES[framework].removesuffix(".py")
        quiet = [] if framework == "litestar" else ["-W", "error"]  # it warns of its own
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *quiet, "-m", "uvicorn", f"{module}:app", "--port", "0", *options],
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

    def health_now(self) -> dict[str, Any]:
        """Whatever its status."""
        with urllib.request.build_opener(NoError).open(
            f"http://127.0.0.1:{self.port}/health", timeout=10
        ) as response:
            return dict(json.loads(response.read()))

    def health(self, status: int = 200) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            assert response.status == status
            return dict(json.loads(response.read()))
        finally:
            connection.close()


class NoError(urllib.request.HTTPErrorProcessor):
    def http_response(self, request: Any, response: Any) -> Any:
        return response


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


@contextmanager
def serving(*args: Any) -> Iterator[Server]:
    web = Server(*args)
    try:
        yield web
    finally:
        web.process.kill()
        web.process.wait(10)


@pytest.fixture(params=["starlette", "fastapi"])
def web(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip(request.param)
    with serving(database.dsn, tmp_path, request.param) as web:
        yield web


def test_events_come_and_a_client_that_goes_is_unsubscribed(web: Server, database: Database) -> None:
    """Guarantees 8, 9, 10: each client is a subscriber, from its `ready` until it goes away."""
    first, second, other = Client(web, "orders"), Client(web, "orders"), Client(web, "customers")
    for client, channel in ((first, "orders"), (second, "orders"), (other, "customers")):
        assert client.next() == ("ready", [channel])
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
    assert client.next() == ("ready", ["orders"])
    with database.unreachable():
        until(lambda: web.health(503)["connected"] is False)
        database.execute("select pg_notify('orders', '\"missed\"')")
    assert client.next() == ("gap", ["orders"])
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
    assert other.next() == ("ready", ["orders"])
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
    seen = [stuck.next()]
    while seen[-1] != ("notification", [7, 499, "x" * 6000]):
        seen.append(stuck.next())
    assert seen[0] == ("ready", ["orders"])
    assert ("gap", ["orders"]) in seen  # where its own are missing
    places = [500 * data[0] + data[1] if kind == "notification" else None for kind, data in seen[1:]]
    for before, number in itertools.pairwise(places):
        assert number is None or before is None or number == before + 1
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


def test_the_database_restarts(web: Server, database: Database) -> None:
    """Guarantee 10: all clients stay, and each is told once, before what comes later."""
    clients = [Client(web, "orders") for _ in range(5)]
    for client in clients:
        assert client.next() == ("ready", ["orders"])
    for _ in range(3):
        with database.unreachable():
            database.execute("select pg_notify('orders', '\"missed\"')")
        until(lambda: web.health_now()["connected"])
        database.execute("select pg_notify('orders', '\"heard\"')")
        for client in clients:
            assert client.next() == ("gap", ["orders"])
            assert client.next() == ("notification", "heard")
    for client in clients:
        client.close()
    until(lambda: web.health()["clients"] == 0)
    assert "Traceback" not in web.text


def test_it_stops_without_a_signal(database: Database, tmp_path: Path) -> None:
    """`--timeout-graceful-shutdown` ends the streams where nothing else does; the session is ended, too."""
    options = ["--timeout-graceful-shutdown", "1", "--limit-max-requests", "2"]
    with serving(database.dsn, tmp_path, "starlette", *options) as web:
        clients = [Client(web, "orders") for _ in range(2)]
        assert all(client.next()[0] == "ready" for client in clients)
        for _ in range(2):  # responses that have ended count
            web.health()
        web.process.wait(10)
        assert "timeout graceful shutdown exceeded" in web.text
        assert "Application shutdown complete" in web.text
        until(lambda: database.listeners() == [])
        for client in clients:
            client.close()


def test_a_test_client(database: Database, tmp_path: Path) -> None:
    """It runs the lifespan on a thread, where no signal can be handled."""
    pytest.importorskip("httpx")
    write("web.md", tmp_path, "events.py", "lifespan.py", "app.py")
    (tmp_path / "test.py").write_text("""
from app import app
from starlette.testclient import TestClient
with TestClient(app) as client:
    assert client.get("/health").json()["clients"] == 0
    assert client.get("/events/secrets").status_code == 404
print("good")
""")
    with process(tmp_path, "-W", "ignore", "test.py", DATABASE_URL=database.dsn) as child:
        child.wait(20)
    assert (tmp_path / "log").read_text() == "good\n"


def test_litestar(database: Database, tmp_path: Path) -> None:
    """Guarantees 10, 17: events, a client that hangs up, and a clean stop with a stream open."""
    pytest.importorskip("litestar")
    with serving(database.dsn, tmp_path, "litestar") as web:
        first, second = Client(web, "orders"), Client(web, "orders")
        for client in (first, second):
            assert client.next() == ("ready", ["orders"])
        database.execute("""select pg_notify('orders', '{"id": 42}')""")
        assert first.next() == second.next() == ("notification", {"id": 42})
        first.close()
        for number in range(3):
            database.execute("select pg_notify('orders', %s)", [str(number)])
            assert second.next() == ("notification", number)
        connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
        connection.request("GET", "/events/secrets")
        assert connection.getresponse().status == 404
        connection.close()
        web.process.send_signal(signal.SIGTERM)
        assert second.ended()
        web.process.wait(10)
        assert "Application shutdown complete" in web.text
        assert "Traceback" not in web.text
        until(lambda: database.listeners() == [])
        second.close()


CHANNELS_TEST = """
import asyncio
import json

import django
from django.conf import settings

settings.configure(SECRET_KEY="not one", INSTALLED_APPS=["channels"], USE_TZ=True)
django.setup()

from asgiref.testing import ApplicationCommunicator
from channels.routing import URLRouter
from consumers import Events
from django.urls import path
from events import notifier

application = URLRouter([path("events/<channel>", Events.as_asgi())])


async def connect(channel):
    client = ApplicationCommunicator(application, {"type": "websocket", "path": f"/events/{channel}"})
    await client.send_input({"type": "websocket.connect"})
    return client, (await client.receive_output(5))["type"]


async def received(client):
    return json.loads((await client.receive_output(5))["text"])


async def main():
    assert (await connect("secrets"))[1] == "websocket.close"
    (first, accepted), (second, _) = await connect("orders"), await connect("orders")
    assert accepted == "websocket.accept"
    for client in (first, second):
        assert await received(client) == {"reload": True}
    await notifier.notify("orders", {"id": 42})
    for client in (first, second):
        assert await received(client) == {"payload": {"id": 42}}
    assert len(notifier.subscribers()) == 2
    await first.send_input({"type": "websocket.disconnect", "code": 1000})
    while len(notifier.subscribers()) > 1:
        await asyncio.sleep(0.01)
    await notifier.stop()
    assert (await second.receive_output(5))["code"] == 1001
    await second.send_input({"type": "websocket.disconnect", "code": 1001})
    while notifier.subscribers():
        await asyncio.sleep(0.01)
    print("good")


asyncio.run(asyncio.wait_for(main(), 20))
"""


def test_django_channels(database: Database, tmp_path: Path) -> None:
    """Guarantee 17: each client has a stream, and leaves nothing behind."""
    pytest.importorskip("channels")
    write("web.md", tmp_path, "events.py", "consumers.py")
    (tmp_path / "test.py").write_text(CHANNELS_TEST)
    with process(tmp_path, "-W", "ignore", "test.py", DATABASE_URL=database.dsn) as child:
        child.wait(30)
    assert (tmp_path / "log").read_text() == "good\n"
    assert database.listeners() == []
