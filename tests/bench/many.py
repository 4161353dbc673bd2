"""Many streams of one session, and many notifiers in one process; each measure in its own process. Plain numbers."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any

import psycopg

from .bursts import LIMIT, Counter, new_channel
from .process import memory, wakeups


def streams(dsn: str, reader: str, streams: int, count: int) -> dict[str, float]:
    """So many tasks, each with an async stream of its own: memory of one, and microseconds a stream to hear."""

    async def read(stream: Any) -> None:
        async for event in stream:
            counter(event.payload)
            if counter.full.is_set():
                heard.set()

    async def main() -> dict[str, float]:
        from pgnotifier import AsyncNotifier

        nonlocal counter, heard
        channel, heard = new_channel(), asyncio.Event()
        async with AsyncNotifier(dsn) as notifier, AsyncExitStack() as stack:
            await (await stack.enter_async_context(notifier.listen(channel))).get(LIMIT)  # `Listening`
            before, began = memory(), perf_counter()
            opened = [await stack.enter_async_context(notifier.listen(channel)) for _ in range(streams)]
            for stream in opened:
                await stream.get(LIMIT)
            opening = perf_counter() - began
            kib = (memory() - before) / streams * 1024
            tasks = [asyncio.ensure_future(read(stream)) for stream in opened]
            await asyncio.sleep(0.1)
            times = []
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as sender:
                for k in range(count):
                    counter = Counter(streams)
                    heard.clear()
                    at = perf_counter()
                    await sender.execute("select pg_notify(%s, %s)", (channel, str(k)))
                    await asyncio.wait_for(heard.wait(), LIMIT)
                    times.append((counter.last - at) / streams * 1e6)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return {"opening": opening, "kib": kib, "us": median(times)}

    counter, heard = Counter(1), asyncio.Event()
    return asyncio.run(main())


def notifiers(dsn: str, reader: str, notifiers: int, count: int) -> dict[str, float]:
    """So many notifiers, a session each: seconds to start and stop them all, what one costs, when all have heard."""
    from pgnotifier import Notifier

    counter = Counter(1)
    channel = new_channel()

    def fn(id: object, channel: str, payload: Any, pid: int) -> None:
        counter(payload)

    threads, before, began = threading.active_count(), memory(), perf_counter()
    made = [Notifier(dsn) for _ in range(notifiers)]
    for n in made:
        n.subscribe("bench", channel, fn)
    starting = perf_counter() - began
    sleep(0.5)
    result = {
        "starting": starting,
        "kib": (memory() - before) / notifiers * 1024,
        "threads": (threading.active_count() - threads) / notifiers,
    }
    times = []
    with psycopg.connect(dsn, autocommit=True) as sender:
        for k in range(count):
            sleep(0.01)
            counter = Counter(notifiers)
            at = perf_counter()
            sender.execute("select pg_notify(%s, %s)", (channel, str(k)))
            counter.wait()
            times.append((counter.last - at) * 1e3)
    switches, cpu, at = wakeups(), process_time(), perf_counter()
    sleep(3)
    result |= {
        "ms": median(times),
        "wakeups": (wakeups() - switches) / (perf_counter() - at),
        "cpu_us": (process_time() - cpu) / (perf_counter() - at) * 1e6,
    }
    began = perf_counter()
    for n in made:
        n.stop()
    return result | {"stopping": perf_counter() - began}
