"""The tools of these tests, with plain connections: each fault does what it says."""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from conftest import until

from .proxy import Proxy
from .servers import Server
from .tls import TlsProxy
from .traffic import Traffic


def connect(dsn: str) -> closing[psycopg.Connection[Any]]:
    return closing(psycopg.connect(dsn, autocommit=True, connect_timeout=5))


def send(conn: psycopg.Connection[Any]) -> None:
    conn.pgconn.send_query(b"select 1")
    conn.pgconn.flush()


def answered(conn: psycopg.Connection[Any], seconds: float) -> bool:
    """Whether any byte came within `seconds`."""
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        sock.settimeout(seconds)
        try:
            return bool(sock.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False


def test_server_faults(db: Server) -> None:
    """Stopped, killed, frozen: and each time it starts again."""
    for fault in [db.stop, db.kill, db.restart, lambda: db.restart("immediate")]:
        with connect(db.dsn) as conn:
            fault()
            with pytest.raises(psycopg.OperationalError):
                conn.execute("select 1")
        db.start()
        assert db.execute("select 1") == [(1,)]
    with connect(db.dsn) as conn, connect(db.socket_dsn):
        db.freeze(conn.info.backend_pid)
        send(conn)
        assert not answered(conn, 0.1)
        db.thaw(conn.info.backend_pid)
        assert answered(conn, 5)


def test_deaf(proxy: Proxy) -> None:
    """In each direction, and what was held comes afterwards."""
    for to_server, to_client in [(True, False), (False, True), (True, True)]:
        with connect(proxy.dsn) as conn:
            passed = proxy.to_server.passed
            proxy.deafen(to_server=to_server, to_client=to_client)
            send(conn)
            assert not answered(conn, 0.05)
            until(lambda passed=passed, deaf=to_server: (proxy.to_server.passed == passed) == deaf)
            proxy.heal()
            assert answered(conn, 5)


def test_slow(proxy: Proxy) -> None:
    """Late in both directions, and a byte at a time."""
    with connect(proxy.dsn) as conn:
        proxy.slow(delay=0.1)
        since = time.monotonic()
        conn.execute("select 1")
        assert 0.2 <= time.monotonic() - since < 2
        proxy.heal()
        proxy.slow(trickle=0.002)
        since, passed = time.monotonic(), proxy.to_client.passed
        assert conn.execute("select 1").fetchone() == (1,)
        assert time.monotonic() - since >= 0.002 * (proxy.to_client.passed - passed - 1)
    with connect(proxy.dsn):
        pass  # the start too


def test_connections_refused_and_reset(proxy: Proxy) -> None:
    """New ones refused, reset, never answered; existing ones go on until they are reset."""
    with connect(proxy.dsn) as conn:
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            connect(proxy.dsn)
        proxy.heal()
        proxy.accept("reset")
        with pytest.raises(psycopg.OperationalError):
            connect(proxy.dsn)
        proxy.accept("silent")
        with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
            sock.sendall(b"x" * 8)
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
        proxy.accept("forward")
        assert conn.execute("select 1").fetchone() == (1,)
        proxy.reset()
        with pytest.raises(psycopg.OperationalError):
            conn.execute("select 1")
    with connect(proxy.dsn):
        pass


def test_traffic_survives_the_server(db: Server, traffic: Traffic) -> None:
    """Every number is recorded once, in order, and sending goes on after a restart and a SIGKILL."""
    for fault in [db.restart, db.kill]:
        seen = traffic.last_certain()
        until(lambda seen=seen: traffic.last_certain() > seen + 5)
        fault()
        db.start()
    seen = traffic.last_certain()
    until(lambda: traffic.last_certain() > seen + 5)
    traffic.stop()
    sent = traffic.sent()
    assert [one.number for one in sent] == list(range(1, len(sent) + 1))
    assert sum(one.after is None for one in sent) <= 2


def test_tls_proxy(db: Server, tmp_path: Path) -> None:
    """libpq 17 and later, verified against the proxy's own root."""
    with TlsProxy(db.address, tmp_path) as proxy, connect(proxy.dsn) as conn:
        assert conn.pgconn.ssl_in_use
        rows = conn.execute("select repeat('x', 7000) from generate_series(1, 200)").fetchall()
        assert len(rows) == 200
