"""AsyncNotifier on a network that has frozen: the event loop never waits, and a cancelled call leaves nothing behind
(guarantee 17)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import anyio
import psycopg
import pytest

from conftest import until
from pgnotifier import AsyncNotifier

from .proxy import Proxy
from .servers import Server

BOUND = 1.0  # seconds that `stop` takes on a frozen network
STANDSTILL = 0.005  # seconds that the event loop stands still at most
ROUNDS = 7  # the shortest of so many counts: other processes interrupt this one, but not each time


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


@contextlib.asynccontextmanager
async def standstill() -> AsyncIterator[list[float]]:
    """Afterwards the list has by how much, in seconds, the event loop was late at most."""
    longest: list[float] = []
    took: list[float] = []

    async def look() -> None:
        while True:
            since = time.perf_counter()
            await asyncio.sleep(0.0002)  # which asyncio rounds up to a millisecond
            took.append(time.perf_counter() - since)

    looking = asyncio.ensure_future(look())
    try:
        yield longest
    finally:
        looking.cancel()
        await asyncio.wait([looking])
        longest.append(max(took) - sorted(took)[len(took) // 2])


async def until_(condition: Any, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


def threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("pgnotifier-"))


IDLE = ["pgnotifier-listener", "pgnotifier-worker-1"]


def test_the_loop_never_waits_for_a_frozen_server(proxy: Proxy) -> None:
    """Guarantee 17: at most 5 ms, whatever is called, also while changes, a send and a stop are waiting."""

    async def round_(rest: list[float]) -> None:
        n = AsyncNotifier(proxy.dsn, heartbeat=30.0)
        await n.start()
        await n.subscribe("s", "a", print)
        await n.notify("a")
        await n.add_channels(["b", "c"])
        await n.subscribe("later", "c", print, False)
        proxy.deafen()
        calls: list[Any] = []
        async with standstill() as longest:
            for call in (
                n.subscribe("t", "b", print),
                n.unsubscribe("s", "a"),
                n.mute_channels("a"),
                n.unmute_channels(),
                n.mute_subscriber("later"),
                n.unmute_subscriber("later"),
                n.remove_channels("c"),
                n.notify("a", 1),
                n.restart(),
                n.wait(),
            ):
                calls.append(asyncio.ensure_future(call))
                await asyncio.sleep(0.005)
                n.status(), n.channels(), n.subscribers(), n.active_channels(), n.is_running()
            await asyncio.sleep(0.05)
            assert not any(call.done() for call in calls)
            since = time.monotonic()
            await n.stop()
            assert time.monotonic() - since < BOUND
            await asyncio.gather(*calls[:7], *calls[8:])  # they are recorded, and return
            with contextlib.suppress(psycopg.OperationalError):
                await calls[7]
        assert not n.is_running()
        proxy.heal()
        rest.append(longest[0])

    async def main() -> None:
        rest: list[float] = []
        for _ in range(ROUNDS):
            await round_(rest)
        print("longest stand-stills in ms:", [round(1000 * seconds, 2) for seconds in rest])
        assert min(rest) < STANDSTILL, rest

    run(main())


@pytest.mark.parametrize("how", ["silent", "deaf"])
def test_stop_and_cancel_a_start_that_gets_no_answer(proxy: Proxy, how: str) -> None:
    """Guarantee 17: the loop goes on, `stop` takes less than a second, and a cancelled start leaves it stopped."""

    async def main() -> None:
        n = AsyncNotifier(proxy.dsn)
        accepted = proxy.accepted
        if how == "silent":
            proxy.accept("silent")
        else:
            proxy.deafen()
        rest = []
        for _ in range(ROUNDS):
            async with standstill() as longest:
                starting = asyncio.ensure_future(n.start())
                await until_(lambda accepted=accepted: proxy.accepted > accepted)
                accepted = proxy.accepted
                since = time.monotonic()
                await n.stop()
                assert time.monotonic() - since < BOUND
                await starting  # as Notifier.start, when another thread stops it
                since = time.monotonic()
                with anyio.move_on_after(0.05) as scope:
                    async with n:
                        raise AssertionError("the block is not entered")
                assert scope.cancelled_caught
                assert time.monotonic() - since < 0.5
                await until_(lambda: threads() == [], BOUND)
                assert not n.is_running()
                accepted = proxy.accepted
            rest.append(longest[0])
        assert min(rest) < STANDSTILL, rest
        proxy.heal()
        async with n:
            assert n.status()["connected"]

    run(main())


def test_stop_comes_right_after_start(proxy: Proxy, rng: random.Random) -> None:
    """Guarantee 17: at whatever moment of a start on a frozen network."""

    async def main() -> None:
        n = AsyncNotifier(proxy.dsn)
        proxy.deafen()
        for _ in range(50):
            starting = asyncio.ensure_future(n.start())
            await asyncio.sleep(rng.choice([0, 0, rng.random() * 0.002]))
            since = time.monotonic()
            await n.stop()
            assert time.monotonic() - since < BOUND
            assert not n.is_running()
            await starting
        proxy.heal()

    run(main())


def test_notify_does_not_wait_for_a_change(proxy: Proxy, db: Server) -> None:
    """Guarantee 17: a send has a thread of its own."""
    asked: list[str] = []

    def dbconf() -> str:  # the first session goes through the proxy, the sender's does not
        asked.append(proxy.dsn if not asked else db.dsn)
        return asked[-1]

    async def main() -> None:
        async with AsyncNotifier(dbconf, heartbeat=30.0) as n:
            proxy.deafen()
            changing = asyncio.ensure_future(n.subscribe("s", "a", print))
            await asyncio.sleep(0.05)
            for number in range(5):
                await asyncio.wait_for(n.notify("a", number), 5)
            assert not changing.done()
        await changing

    run(main())


def test_a_send_gets_no_answer(proxy: Proxy) -> None:
    """Guarantees 13, 17: each raises within ten seconds of its call, those that wait behind it too."""

    async def main() -> None:
        async with AsyncNotifier(proxy.dsn, heartbeat=30.0) as n:
            await n.notify("a")
            proxy.deafen()
            since = time.monotonic()
            sending = [asyncio.ensure_future(n.notify("a")) for _ in range(2)]
            await asyncio.sleep(0.02)
            with anyio.move_on_after(0.02):
                await n.notify("a", "is not sent")
            await asyncio.sleep(3)
            sending.append(asyncio.ensure_future(n.notify("a")))
            failed = await asyncio.gather(*sending[:2], return_exceptions=True)
            assert all(isinstance(error, psycopg.OperationalError) for error in failed)
            assert 9 < time.monotonic() - since < 11.5
            with pytest.raises(psycopg.OperationalError):
                await sending[2]
            assert time.monotonic() - since < 14.5
            proxy.heal()
            await n.notify("a")
            await until_(lambda: threads() == IDLE)

    run(main())


@pytest.mark.parametrize("stopped", [False, True])
def test_a_subscribe_that_is_cancelled_on_a_frozen_network(proxy: Proxy, db: Server, stopped: bool) -> None:
    """Guarantee 17: its task goes on at once. With the connection lost or the notifier stopped, all is gone."""

    async def main() -> None:
        n = AsyncNotifier(proxy.dsn, heartbeat=2.0, retry_delay=(0.01, 0.05))
        await n.start()
        await n.subscribe("stays", "stays", print)
        proxy.deafen()
        for number in range(10):
            since = time.monotonic()
            with anyio.move_on_after(0.02):
                await n.subscribe(number, "frozen", print)
                raise AssertionError("it can't be in effect")
            assert time.monotonic() - since < 0.5
        before = n.status()["reconnects"]
        if stopped:
            await n.stop()
            proxy.heal()
            await n.start()
        else:
            await until_(lambda: not n.status()["connected"])
            proxy.heal()
            await until_(lambda: n.status()["connected"] and n.status()["reconnects"] > before)
        await until_(lambda: threads() == IDLE and n.active_channels() == ["stays"])
        assert n.subscribers().keys() == {"stays"}
        assert n.channels().keys() == {"stays"}
        await n.stop()

    run(main())


def test_waves_of_cancelled_subscribes_on_a_slow_network(proxy: Proxy, rng: random.Random) -> None:
    """Guarantee 17: most are cancelled while the server is being asked, so LISTEN has been sent."""

    async def client(n: AsyncNotifier, number: int) -> None:
        with anyio.move_on_after(rng.random() * 0.15):
            await n.subscribe(number, f"slow_{number % 7}", print)
            try:
                await asyncio.sleep(0.01)
            finally:
                await n.unsubscribe(number, f"slow_{number % 7}")

    async def main() -> None:
        async with AsyncNotifier(proxy.dsn, heartbeat=30.0) as n:
            proxy.slow(delay=0.02)
            for _ in range(5):
                await asyncio.gather(*(client(n, number) for number in range(20)))
                await asyncio.sleep(rng.random() * 0.1)
            await until_(lambda: n.subscribers() == {} and n.active_channels() == [])
            await until_(lambda: threads() == IDLE)
            proxy.slow()

    run(main())
    until(lambda: threads() == [])
