"""Where a notification's microseconds go: the same burst, read by ever more of the layers.

Imports pgnotifier where it is used: the environment of 0.0.10 has another one.
"""

from __future__ import annotations

import asyncio
import select
import threading
from collections.abc import Callable
from statistics import median
from time import process_time, sleep
from typing import Any

import psycopg

from .bursts import LIMIT, burst, new_channel

LAYERS = ("libpq", "Connection.notifies", "event loop", "listener", "mailbox and worker", "decode")


def layers(dsn: str, reader: str, payload: str, count: int, bursts: int = 3) -> dict[str, float]:
    """CPU microseconds a message of each layer with all below it, of `count` at once."""
    result: dict[str, float] = {}
    for name, read in zip(LAYERS, (_libpq, _bare, _loop, _listener, _worker, _decode), strict=True):
        result[name] = median(read(dsn, payload, count) / count * 1e6 for _ in range(bursts))
    return result


def _timed(dsn: str, channel: str, payload: str, count: int, took: Callable[[], int]) -> float:
    """CPU seconds from before a burst until `took()`, called again and again, has counted all."""
    seen = 0
    with psycopg.connect(dsn, autocommit=True) as sender:
        cpu = process_time()
        burst(sender, channel, payload, count)
        while seen < count:
            seen += took()
        return process_time() - cpu


def _listening(dsn: str, channel: str) -> psycopg.Connection[Any]:
    conn = psycopg.connect(dsn, autocommit=True)
    conn.execute(f'LISTEN "{channel}"'.encode())
    return conn


def _libpq(dsn: str, payload: str, count: int) -> float:
    channel = new_channel()
    with _listening(dsn, channel) as conn:
        pgconn, poll = conn.pgconn, select.poll()
        poll.register(pgconn.socket, select.POLLIN)

        def took() -> int:
            poll.poll(LIMIT * 1000)
            pgconn.consume_input()
            n = 0
            while pgconn.notifies() is not None:
                n += 1
            return n

        return _timed(dsn, channel, payload, count, took)


def _bare(dsn: str, payload: str, count: int) -> float:
    channel = new_channel()
    with _listening(dsn, channel) as conn:
        return _timed(dsn, channel, payload, count, lambda: len(list(conn.notifies(timeout=LIMIT, stop_after=1))))


def _loop(dsn: str, payload: str, count: int) -> float:
    from pgnotifier.connection.aioloop import new_loop

    channel, loop = new_channel(), new_loop()
    with _listening(dsn, channel) as conn:
        readable = asyncio.Event()
        loop.add_reader(conn.fileno(), readable.set)

        async def one() -> int:
            await readable.wait()
            readable.clear()
            return len(list(conn.notifies(timeout=0)))

        try:
            return _timed(dsn, channel, payload, count, lambda: loop.run_until_complete(one()))
        finally:
            loop.remove_reader(conn.fileno())
            loop.close()


def _listener(dsn: str, payload: str, count: int) -> float:
    """To SYSCHAN, which is listened to without a subscriber: drained, counted, and routed to nobody."""
    from pgnotifier import Notifier

    with Notifier(dsn) as n:

        def took() -> int:
            sleep(0.005)
            return count if n.status()["received"] >= count else 0

        return _timed(dsn, n.SYSCHAN, payload, count, took)


def _worker(dsn: str, payload: str, count: int) -> float:
    return _delivered(dsn, payload, count, str)


def _decode(dsn: str, payload: str, count: int) -> float:
    return _delivered(dsn, payload, count, None)


def _delivered(dsn: str, payload: str, count: int, decode: Callable[[str], Any] | None) -> float:
    from pgnotifier import Notifier

    channel, full = new_channel(), threading.Event()
    seen = 0

    def fn(id: Any, channel: str, payload: Any, pid: int) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            full.set()

    with Notifier(dsn, **({} if decode is None else {"decode": decode})) as n:
        n.subscribe(1, channel, fn)
        return _timed(dsn, channel, payload, count, lambda: count if full.wait(LIMIT) else 0)
