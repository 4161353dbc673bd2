"""AsyncMemoryNotifier: AsyncNotifier on a server in memory (guarantee 17)."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import anyio
import psycopg
import pytest

import pgnotifier
from pgnotifier import AsyncNotifier, Listening, StreamClosed, UnknownChannel
from pgnotifier.testing import AsyncMemoryNotifier, MemoryNotifier, MemoryServer


@pytest.fixture
def memory() -> Iterator[MemoryServer]:
    with MemoryServer() as memory:
        yield memory


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 10), debug=True)


def test_it_has_the_surface_of_the_real_one(memory: MemoryServer) -> None:
    """Guarantee 17: the same methods and arguments, and `server`."""
    real, mine = inspect.signature(AsyncNotifier).parameters, dict(inspect.signature(AsyncMemoryNotifier).parameters)
    assert mine.pop("server").default is None
    assert mine == dict(real)
    for name in (name for name in dir(AsyncNotifier) if not name.startswith("_")):
        assert getattr(AsyncMemoryNotifier, name) is getattr(AsyncNotifier, name)
    assert inspect.signature(memory.AsyncNotifier) == inspect.signature(AsyncMemoryNotifier)


def test_its_controls_are_those_of_memory_notifier() -> None:
    """The same arguments; all are awaited."""
    controls = {name for name in vars(MemoryNotifier) if not name.startswith("_")}
    assert {name for name in vars(AsyncMemoryNotifier) if not name.startswith("_")} == controls
    for name in controls:
        mine, its = (inspect.signature(getattr(c, name)).parameters for c in (AsyncMemoryNotifier, MemoryNotifier))
        assert mine == its, name


def test_those_of_one_server_hear_each_other(memory: MemoryServer) -> None:
    """Guarantee 17: whatever class made them; each alone has a server of its own."""

    async def main() -> None:
        one, other = memory.AsyncNotifier("not used", workers=2), AsyncMemoryNotifier(server=memory)
        assert isinstance(one, pgnotifier.AsyncNotifier)
        assert one.server is other.server is memory
        assert AsyncMemoryNotifier().server is not memory
        sync, heard = memory.Notifier(), []
        sync.subscribe("s", "a", lambda *a: heard.append(a[2]))
        assert not one.is_running()
        async with one, other, one.listen("a") as stream:
            assert len(memory.notifiers()) == 3
            assert memory.listening().keys() >= {one.status()["pid"], other.status()["pid"]}
            await other.notify("a", {"n": 1})
            memory.notify("a", 2)
            assert await stream.get(5) == Listening(("a",), ())
            assert [(await stream.get(5)).payload for _ in range(2)] == [{"n": 1}, 2]
            await one.settle()
            assert heard == [{"n": 1}, 2]

    run(main())


def test_settle_waits_for_coroutines(memory: MemoryServer) -> None:
    """And for what they send; inside one it raises."""
    heard: list[Any] = []

    async def main() -> None:
        n = memory.AsyncNotifier()

        async def callback(id: Any, channel: str, payload: Any, pid: int) -> None:
            await asyncio.sleep(0.01)
            heard.append(payload)
            if payload < 3:
                await n.notify("a", payload + 1)
            else:
                with pytest.raises(RuntimeError, match="in a callback"):
                    await n.settle()

        async with n:
            await n.subscribe("s", "a", callback)
            memory.notify("a", 1)
            await n.settle()
            assert heard == [1, 2, 3]
            assert n.status()["failed"] == 0
            await n.subscribe("never", "b", lambda *a: blocked.wait())
            memory.notify("b")
            with pytest.raises(TimeoutError):
                await n.settle(0.05)
            blocked.set()

    blocked = threading.Event()
    run(main())


def test_losing_the_connection_and_gaps(memory: MemoryServer) -> None:
    """Guarantees 10, 16: in the stream, where notifications are missing."""

    async def main() -> None:
        async with memory.AsyncNotifier() as n, n.listen("a", "b") as stream:
            assert await stream.get(5) == Listening(("a", "b"), ())
            async with n.connection_lost():
                assert not n.status()["connected"]
                memory.notify("a", "missed")
            memory.notify("a", "heard")
            event = await stream.get(5)
            assert {(gap.channel, gap.reason) for gap in event.gaps} == {("a", "connection"), ("b", "connection")}  # type: ignore[union-attr]
            assert (await stream.get(5)).payload == "heard"  # type: ignore[union-attr]
            await n.lose_connection("gone fishing")
            assert n.status()["last_error"] is not None
            await n.restore_connection()
            event = await stream.get(5)
            assert all("gone fishing" in str(gap.error) for gap in event.gaps)  # type: ignore[union-attr]
            await n.raise_gap(iter(["b"]), "overflow", dropped=7)
            (gap,) = (await stream.get(5)).gaps  # type: ignore[union-attr]
            assert (gap.channel, gap.reason, gap.dropped) == ("b", "overflow", 7)
            with pytest.raises(UnknownChannel):
                await n.raise_gap("unknown")

    run(main())


def test_a_server_that_is_away(memory: MemoryServer) -> None:
    """Guarantees 2, 17: starting and sending fail."""

    async def main() -> None:
        n = memory.AsyncNotifier()
        memory.stop()
        for call in (n.start, lambda: n.notify("a")):
            with pytest.raises(psycopg.OperationalError):
                await call()
        memory.start()
        async with n:
            await n.notify("a")

    run(main())


def test_a_frozen_server(memory: MemoryServer) -> None:
    """Guarantee 17: what is cancelled leaves nothing; leaving a stream waits for nothing."""

    async def main() -> None:
        async with memory.AsyncNotifier(heartbeat=None) as n:
            async with n.listen("a"):
                memory.freeze()
                with anyio.move_on_after(0.02) as scope:
                    async with n.listen("b"):
                        raise AssertionError("it can't be in effect")
                assert scope.cancelled_caught
            assert n.subscribers() == {}
            memory.thaw()
            while n.active_channels():
                await asyncio.sleep(0.001)
            assert memory.listening() == {n.status()["pid"]: [n.SYSCHAN]}

    run(main())


def test_connection_lost_in_a_task_that_is_cancelled(memory: MemoryServer) -> None:
    """The connection comes back."""

    async def main() -> None:
        async with memory.AsyncNotifier() as n:
            for after in (0.0, 0.001, 0.02):
                with anyio.move_on_after(after):
                    async with n.connection_lost():
                        await asyncio.sleep(5)
                while not n.status()["connected"]:
                    await asyncio.sleep(0.001)

    run(main())


def test_closing_the_server_stops_it_and_ends_its_streams() -> None:
    """As the fixture of pytest does at a test's end."""

    async def main() -> None:
        with MemoryServer() as memory:
            n = memory.AsyncNotifier()
            await n.start()
            stream = await n.listen("a").__aenter__()
            await stream.get(5)
            getting = asyncio.ensure_future(stream.get())
            await asyncio.sleep(0.01)
        assert not n.is_running()
        with pytest.raises(StreamClosed):
            await getting

    run(main())
