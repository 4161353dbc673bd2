"""AsyncStream on a network that has frozen: leaving waits for nothing, nor does the event loop (guarantee 17)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import anyio

from conftest import until
from pgnotifier import AsyncNotifier, AsyncStream, Listening

from .proxy import Proxy
from .test_aio import BOUND, IDLE, ROUNDS, STANDSTILL, run, standstill, threads, until_

CLOSING = 0.05  # seconds that `close` takes at most


async def read_all(stream: AsyncStream) -> list[Any]:
    return [event async for event in stream]


def test_the_loop_never_waits_and_streams_close_at_once(proxy: Proxy) -> None:
    """Guarantees 16, 17: 50 ms for `close`, 5 ms for the loop, a second for `stop`, with changes that wait."""

    async def round_(rest: list[float], closing: list[float]) -> None:
        n = AsyncNotifier(proxy.dsn, heartbeat=30.0)
        await n.start()
        await n.subscribe("s", "a", print)
        await n.add_channels(["b", "c"])
        async with n.listen("x") as x, n.listen("y", "z") as y, n.listen("a") as z:
            for stream in (x, y, z):
                assert isinstance(await stream.get(10), Listening)
            readers = [asyncio.ensure_future(read_all(stream)) for stream in (x, y, z)]
            proxy.deafen()
            calls: list[Any] = []
            async with standstill() as longest:
                entered = n.listen("frozen")
                for call in (
                    n.subscribe("t", "b", print),
                    n.unsubscribe("s", "a"),
                    n.mute_channels("y"),
                    n.mute_subscriber(z),
                    entered.__aenter__(),
                ):
                    calls.append(asyncio.ensure_future(call))
                    await asyncio.sleep(0.005)
                assert not any(call.done() for call in calls)
                since = time.perf_counter()
                await x.close()
                closing.append(time.perf_counter() - since)
                assert await asyncio.wait_for(readers[0], BOUND) == []
                since = time.perf_counter()
                with anyio.move_on_after(0.02) as scope:
                    async with n.listen("given up"):
                        raise AssertionError("it can't be in effect")
                assert scope.cancelled_caught
                assert time.perf_counter() - since < 0.5
                assert n.subscribers().keys() == {"s", y, z}
                await asyncio.sleep(0.05)
                assert not any(call.done() for call in calls)
                since = time.perf_counter()
                await n.stop()
                assert time.perf_counter() - since < BOUND
                assert await asyncio.wait_for(asyncio.gather(*readers[1:]), BOUND) == [[], []]
                await asyncio.gather(*calls)  # they are recorded, and return
                await entered.close()
        assert n.subscribers().keys() == {"t"}
        proxy.heal()
        rest.append(longest[0])

    async def main() -> None:
        rest: list[float] = []
        closing: list[float] = []
        for _ in range(ROUNDS):
            await round_(rest, closing)
        print("longest stand-stills in ms:", [round(1000 * seconds, 2) for seconds in rest])
        print("close in ms:", [round(1000 * seconds, 2) for seconds in closing])
        assert min(closing) < CLOSING, closing
        assert min(rest) < STANDSTILL, rest

    run(main())


def test_streams_left_on_a_frozen_network_are_gone_afterwards(proxy: Proxy) -> None:
    """Guarantees 16, 17: nothing comes from a closed one; with the answer the UNLISTEN follows."""

    async def main() -> None:
        async with AsyncNotifier(proxy.dsn, heartbeat=30.0) as n, contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(n.listen(f"c{number % 5}")) for number in range(50)]
            before = asyncio.all_tasks()
            proxy.deafen()
            since = time.perf_counter()
            await stack.aclose()
            assert time.perf_counter() - since < BOUND
            assert (n.subscribers(), n.channels()) == ({}, {})
            assert await asyncio.gather(*map(read_all, streams)) == [[]] * 50
            assert asyncio.all_tasks() == before
            await until_(lambda: threads() == IDLE)  # the thread before the last change may still be ending
            proxy.heal()
            await until_(lambda: n.active_channels() == [])
            async with n.listen("c1") as again:
                assert await again.get(10) == Listening(("c1",), ())
                await n.notify("c1", 1)
                assert (await again.get(10))[:2] == ("c1", 1)

    run(main())
    until(lambda: threads() == [])
