"""What changes cost, and how costs grow; each in one process with one reader. Plain numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter, sleep
from typing import Any

import psycopg

from .bursts import LIMIT, Counter, new_channel
from .process import memory
from .readers import EVERY, READERS
from .threaded import Ours


def change(dsn: str, reader: str, count: int, gap: float = 0.002) -> dict[str, float]:
    """One more channel: milliseconds, with a pause between (as programs do) and back to back."""
    r = EVERY[reader](dsn, new_channel(), print)
    try:
        paused, hot = [], []
        for n in range(count):
            sleep(gap)
            paused.append(r.add(new_channel()) * 1e3)
            if n % 2:
                hot.append(r.add(new_channel()) * 1e3)
    finally:
        r.close()
    return {"p50": median(paused), "hot_p50": median(hot or paused)}


def growth(dsn: str, reader: str, channels: int, count: int) -> dict[str, float]:
    """With so many channels registered: setting up (seconds), then single changes and a message (milliseconds)."""
    r: Ours = READERS[reader](dsn, new_channel(), print)
    n = r.notifier
    names = [new_channel() for _ in range(channels)]
    target = new_channel()
    result: dict[str, float] = {}
    try:
        began = perf_counter()
        for name in names:
            n.subscribe(name, name, print, autorun=False)
        n.start()
        result["setup"] = perf_counter() - began

        def timed(what: str, f: Callable[[int], Any], between: Callable[[int], Any] = lambda k: None) -> None:
            times = []
            for k in range(count):
                sleep(0.001)
                began = perf_counter()
                f(k)
                times.append((perf_counter() - began) * 1e3)
                between(k)
            result[what] = median(times)

        timed("subscribe", lambda k: n.subscribe("more", f"{target}{k}", print))
        timed("mute_channels", lambda k: n.mute_channels(f"{target}{k}"), lambda k: n.unmute_channels(f"{target}{k}"))
        timed(
            "mute_subscriber",
            lambda k: n.mute_subscriber("more", f"{target}{k}"),
            lambda k: n.unmute_subscriber("more", f"{target}{k}"),
        )
        event = threading.Event()
        n.subscribe("message", target, lambda *a: event.set())
        with psycopg.connect(dsn, autocommit=True) as sender:

            def message(k: int) -> None:
                event.clear()
                sender.execute("select pg_notify(%s, %s)", (target, str(k)))
                event.wait(LIMIT)

            timed("message", message)
        result["resident_mib"] = memory()
    finally:
        r.close()
    return result


def fanout(dsn: str, reader: str, subscribers: int, count: int) -> dict[str, float]:
    """One notification for all subscribers of a channel: microseconds a subscriber, from sending to the last call."""
    counter = Counter(1)

    def fn(id: Any, channel: str, payload: Any, pid: int) -> None:
        counter(payload)

    channel = new_channel()
    r: Ours = READERS[reader](dsn, new_channel(), print)
    times, spans = [], []
    try:
        for id in range(subscribers):
            r.notifier.subscribe(id, channel, fn, autorun=False)
        r.notifier.start()
        with psycopg.connect(dsn, autocommit=True) as sender:
            for k in range(count):
                counter = Counter(subscribers)
                began = perf_counter()
                sender.execute("select pg_notify(%s, %s)", (channel, str(k)))
                counter.wait()
                times.append((counter.last - began) / subscribers * 1e6)
                spans.append((counter.last - counter.first) / subscribers * 1e6)
    finally:
        r.close()
    return {"us": median(times), "calls_us": median(spans)}
