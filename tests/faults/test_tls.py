"""TLS: what lies decrypted in the library while the socket is silent must not wait for more (guarantee 5)."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg

from conftest import until
from pgnotifier import Notifier

from .proxy import Proxy
from .servers import Server
from .tls import TlsProxy
from .traffic import Stream, Traffic, assert_whole

BURST = 200  # notifications of 7,000 bytes in one transaction: some 90 TLS records


def test_bursts_larger_than_a_record(db: Server, tmp_path: Path, channel: str) -> None:
    """Guarantee 5: drained whole and at once, with nothing left for the heartbeat to bring to light."""
    heard: list[int] = []
    with (
        TlsProxy(db.address, tmp_path) as proxy,
        Notifier(proxy.dsn, heartbeat=None) as n,
        psycopg.connect(db.dsn, autocommit=True) as sender,
    ):
        n.subscribe("s", channel, lambda *a: heard.append(int(a[2][:9])), on_listen=lambda *a: None)
        query = "select pg_notify(%s, rpad(lpad(i::text, 9, '0'), 7000, ' x')) from generate_series(%s::int, %s) i"
        for burst in range(20):
            since = time.monotonic()
            sender.execute(query, [channel, burst * BURST, (burst + 1) * BURST - 1])
            until(lambda burst=burst: len(heard) == (burst + 1) * BURST, 5)
            assert time.monotonic() - since < 2
    assert heard == list(range(20 * BURST))


def test_changes_of_channels_amid_bursts(db: Server, tmp_path: Path, channel: str) -> None:
    """Guarantee 5: the answer to a LISTEN shares its records with notifications."""
    heard: list[int] = []
    with (
        TlsProxy(db.address, tmp_path) as proxy,
        Notifier(proxy.dsn, heartbeat=None) as n,
        psycopg.connect(db.dsn, autocommit=True) as sender,
    ):
        n.subscribe("s", channel, lambda *a: heard.append(int(a[2][:9])))
        query = "select pg_notify(%s, rpad(lpad(i::text, 9, '0'), 7000, ' x')) from generate_series(%s::int, %s) i"
        for burst in range(20):
            sender.execute(query, [channel, burst * BURST, (burst + 1) * BURST - 1])
            n.subscribe("t", f"{channel}{burst % 2}", print)
            n.unsubscribe("t", f"{channel}{burst % 2}")
        until(lambda: len(heard) == 20 * BURST)
    assert heard == list(range(20 * BURST))


def test_resets(db: Server, tmp_path: Path, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 10: a loss under TLS is a loss like any other."""
    with (
        Proxy(db.address) as inner,
        TlsProxy(("127.0.0.1", inner.port), tmp_path) as proxy,
        Notifier(proxy.dsn, heartbeat=0.5, retry_delay=(0.01, 0.2)) as n,
    ):
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for number in range(1, 11):
            inner.reset()
            until(lambda number=number: n.status()["reconnects"] >= number and n.status()["connected"])
        inner.deafen()
        until(lambda: not n.status()["connected"])
        inner.heal()
        assert_whole(traffic, stream)
