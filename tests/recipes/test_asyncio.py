"""docs/recipes/asyncio.md: guarantees 8, 9, 10 and 11 on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from conftest import until

from .conftest import Database
from .page import load, process, write

LISTENING = load("asyncio.md", "listening.py")
events, open_notifier = LISTENING["events"], LISTENING["open_notifier"]
Heard, Listening = LISTENING["Heard"], LISTENING["Listening"]


def run(main: Any) -> None:
    async def bounded() -> None:
        with anyio.fail_after(20):
            await main

    asyncio.run(bounded())


async def next_of(stream: Any) -> Any:
    return await asyncio.wait_for(anext(stream), 10)


async def until_(condition: Any, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def left(notifier: Any) -> tuple[Any, ...]:
    """What clients that have gone may not leave behind."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return notifier.subscribers(), notifier.active_channels(), tasks


async def given_up_by_anyio(client: Any, after: float) -> None:
    """As Starlette does it: each further await in the clean-up is cancelled again."""
    with anyio.move_on_after(after):
        await client


async def cancelled_twice(client: Any, after: float) -> None:
    task = asyncio.ensure_future(client)
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


def test_events_come_in_order_with_their_gaps(database: Database) -> None:
    """Guarantees 8, 10: listening is told first, and again after a killed session, before what comes later."""

    async def main() -> None:
        async with open_notifier(database.dsn) as notifier, events(notifier, "a", "b") as stream:
            assert {await next_of(stream), await next_of(stream)} == {Listening("a", None), Listening("b", None)}
            for number in range(10):
                database.execute("select pg_notify(%s, %s)", ["ab"[number % 2], str(number)])
            heard = [await next_of(stream) for _ in range(10)]
            assert [(event.channel, event.payload) for event in heard] == [("ab"[i % 2], i) for i in range(10)]
            assert {event.pid for event in heard} == {database.sender.info.backend_pid}
            with database.unreachable():
                database.execute("select pg_notify('a', 'missed')")
            told = [await next_of(stream), await next_of(stream)]
            assert {(event.channel, event.gap.reason) for event in told} == {("a", "connection"), ("b", "connection")}
            database.execute("select pg_notify('a', 'heard')")
            assert (await next_of(stream)).payload == "heard"
        await until_(lambda: left(notifier) == ({}, [], set()))

    run(main())


def test_a_full_queue_waits_and_stopping_lets_go_of_it(database: Database) -> None:
    """Guarantees 9, 11: nothing is lost behind a slow consumer, too much is told, and leaving takes no time."""

    async def main() -> None:
        options = {"max_pending": 500}
        async with open_notifier(database.dsn, **options) as notifier, events(notifier, "c", size=10) as stream:
            assert await next_of(stream) == Listening("c", None)
            database.execute("select pg_notify('c', i::text) from generate_series(0, 99) i")
            await until_(lambda: notifier.status()["received"] == 100)
            await asyncio.sleep(0.05)
            assert 0 < notifier.status()["delivered"] <= 11  # not all at once: there is room for 10
            assert [(await next_of(stream)).payload for _ in range(100)] == list(range(100))
            database.execute("select pg_notify('c', i::text) from generate_series(0, 1999) i")
            await until_(lambda: notifier.status()["dropped"] > 0)
            seen = list[Any]()
            while not (seen and seen[-1] == 1999):
                event = await next_of(stream)
                seen.append(event.gap if isinstance(event, Listening) else event.payload)
            gaps = [event for event in seen if not isinstance(event, int)]
            assert {gap.reason for gap in gaps} == {"overflow"}
            assert sum(gap.dropped for gap in gaps) + len(seen) - len(gaps) == 2000
            database.execute("select pg_notify('c', i::text) from generate_series(0, 99) i")
            await until_(lambda: notifier.status()["received"] == 2200)
            await asyncio.sleep(0.05)  # a callback waits for room when this ends
            began = time.monotonic()
        assert time.monotonic() - began < 5

    run(main())


def test_the_loop_goes_on_while_all_begins_and_ends(database: Database) -> None:
    """Guarantee 11: connecting, subscribing and stopping are on threads."""

    async def main() -> None:
        loop, threads = asyncio.get_running_loop(), list[bool]()
        real = LISTENING["Notifier"]

        class Watched(real):  # type: ignore[misc,valid-type]
            def _on_a_thread(self) -> None:
                with pytest.raises(RuntimeError):
                    asyncio.get_running_loop()
                threads.append(True)

            def __init__(self, *args: Any) -> None:
                self._on_a_thread()
                super().__init__(*args)

            def subscribe(self, *args: Any, **options: Any) -> None:
                self._on_a_thread()
                assert options["loop"] is loop
                super().subscribe(*args, **options)

            def unsubscribe(self, *args: Any) -> None:
                self._on_a_thread()
                super().unsubscribe(*args)

            def stop(self, *args: Any, **options: Any) -> None:
                self._on_a_thread()
                super().stop(*args, **options)

        LISTENING["Notifier"] = Watched
        try:
            async with open_notifier(database.dsn) as notifier, events(notifier, "c") as stream:
                await next_of(stream)
            await until_(lambda: len(threads) == 6)
        finally:
            LISTENING["Notifier"] = real

    run(main())


@pytest.mark.parametrize("give_up", [given_up_by_anyio, cancelled_twice])
def test_clients_that_leave_in_waves_leave_nothing_behind(database: Database, give_up: Any) -> None:
    """Guarantee 17: whenever and however often a client is cancelled, no subscription, task or thread is left."""
    chance = random.Random(f"{give_up.__name__} 17")
    before = set(threading.enumerate())
    seen = 0

    async def client(notifier: Any, number: int) -> None:
        nonlocal seen
        async with events(notifier, f"c{number % 7}", "all", size=1) as stream:
            async for _ in stream:
                seen += 1
                await asyncio.sleep(0.001)

    async def main() -> None:
        async with open_notifier(database.dsn) as notifier:
            for _ in range(4):
                wave = [give_up(client(notifier, n), chance.uniform(0, 0.2)) for n in range(25)]
                notify = "select pg_notify('all', i::text) from generate_series(1, 50) i"
                await asyncio.gather(*wave, asyncio.to_thread(database.execute, notify))
            await until_(lambda: left(notifier) == ({}, [], set()))

    run(main())
    assert seen > 20
    until(lambda: set(threading.enumerate()) == before)


def test_cancelled_while_it_subscribes_or_connects(database: Database) -> None:
    """Guarantee 17: the thread that does it is not cancelled; what it did is undone."""
    before = set(threading.enumerate())
    begun, go_on = threading.Event(), threading.Event()

    class Slow(LISTENING["Notifier"]):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            begun.set()
            go_on.wait(10)

        def subscribe(self, *args: Any, **options: Any) -> None:
            begun.set()
            go_on.wait(10)
            super().subscribe(*args, **options)

    async def cancel_in_mid(client: Any) -> None:
        begun.clear()
        go_on.clear()
        task = asyncio.ensure_future(client)
        await until_(begun.is_set)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()  # it waited for nothing
        go_on.set()

    async def open_it() -> None:
        async with open_notifier(database.dsn):
            raise AssertionError

    async def listen(notifier: Any) -> None:
        async with events(notifier, "a", "b"):
            raise AssertionError

    async def main() -> None:
        real = LISTENING["Notifier"]
        LISTENING["Notifier"] = Slow
        try:
            go_on.set()
            async with open_notifier(database.dsn) as notifier:
                await cancel_in_mid(listen(notifier))
                await until_(lambda: left(notifier) == ({}, [], set()))
            await cancel_in_mid(open_it())
            await until_(lambda: database.listeners() == [])
        finally:
            LISTENING["Notifier"] = real

    run(main())
    until(lambda: set(threading.enumerate()) == before)


def test_the_loop_goes_on_while_the_server_is_frozen(database: Database) -> None:
    """Guarantee 17: leaving waits for nothing, and so does whatever else is on the loop."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)

    async def main() -> None:
        async with open_notifier(database.dsn, heartbeat=1.0) as notifier:
            async with contextlib.AsyncExitStack() as stack:
                async with events(notifier, "a"):
                    stack.enter_context(database.frozen(notifier.status()["pid"]))
                    watching = asyncio.ensure_future(watch())
                    began = time.monotonic()
                assert time.monotonic() - began < 0.3
                async with events(notifier, "b"):  # waits until the connection counts as lost
                    watching.cancel()
                assert time.monotonic() - began > 0.5
            await until_(lambda: left(notifier) == ({}, [], set()))

    run(main())
    assert longest < 0.3


@pytest.mark.parametrize("where", ["thread", "loop", "callback"])
def test_iteration_ends_when_the_notifier_is_stopped(database: Database, where: str) -> None:
    """Guarantees 6, 17: for every reader, behind the events that nobody has read yet; at once where it is stopped."""

    async def read(stream: Any) -> list[Any]:
        return [event async for event in stream]

    def stop(*args: Any) -> None:
        raise SystemExit  # ends the notifier

    async def main() -> None:
        async with open_notifier(database.dsn) as notifier:
            async with events(notifier, "a") as one, events(notifier, "a") as many, events(notifier, "b") as unread:
                readers = [asyncio.ensure_future(read(stream)) for stream in (one, many, many, many)]
                database.execute("select pg_notify('a', 'x'), pg_notify('b', 'x')")
                await until_(lambda: notifier.status()["delivered"] == 3)
                if where == "thread":
                    await asyncio.to_thread(notifier.stop)
                elif where == "loop":
                    notifier.stop()
                else:
                    await asyncio.to_thread(notifier.subscribe, "stop", "a", stop)
                    database.execute("select pg_notify('a', 'end')")
                heard = await asyncio.wait_for(asyncio.gather(*readers), 5)
                pid = database.sender.info.backend_pid
                first = {Listening("a", None), Heard("a", "x", pid)}
                assert first <= set(heard[0])
                assert first <= {event for events in heard[1:] for event in events}
                assert await asyncio.wait_for(read(unread), 5) == [Listening("b", None), Heard("b", "x", pid)]
                assert await asyncio.wait_for(read(unread), 5) == []
            async with events(notifier, "a") as stream:
                assert await asyncio.wait_for(read(stream), 5) == []
            await until_(lambda: notifier.subscribers().keys() <= {"stop"})

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11")
def test_consumers_in_a_group(database: Database) -> None:
    """Each event goes to one of them; the first error ends them all, and the subscription."""
    share_out = load("asyncio.md", "group", **LISTENING)["share_out"]
    handled, at_once, most = list[int](), 0, 0

    async def handle(event: Any) -> None:
        nonlocal at_once, most
        if isinstance(event, Listening):
            database.execute("select pg_notify('c', i::text) from generate_series(0, 20) i")
            return
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        if event.payload == 20:
            raise KeyError("enough")
        handled.append(event.payload)

    async def main() -> None:
        async with open_notifier(database.dsn) as notifier:
            with pytest.raises(BaseException) as caught:  # noqa: PT011
                await share_out(notifier, "c", handle)
            assert [str(error) for error in caught.value.exceptions] == ["'enough'"]  # type: ignore[attr-defined]
            await until_(lambda: left(notifier) == ({}, [], set()))

        async with open_notifier(database.dsn) as notifier:
            sharing = asyncio.ensure_future(share_out(notifier, "c", lambda event: asyncio.sleep(0)))
            await until_(lambda: notifier.active_channels() == ["c"])
            await asyncio.to_thread(notifier.stop)
            await asyncio.wait_for(sharing, 5)

    run(main())
    assert most == 3
    assert sorted(handled) == list(range(len(handled)))
    assert len(handled) >= 18


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_service(database: Database, tmp_path: Path, signum: signal.Signals) -> None:
    """Guarantee 11: as it is pasted and run, ended by a signal, quietly."""
    write("asyncio.md", tmp_path, "listening.py", "service.py")
    log = tmp_path / "log"
    with process(tmp_path, "service.py", DATABASE_URL=database.dsn) as child:
        until(lambda: child.poll() is not None or log.read_text().count("for the first time\n") == 2, 20)
        database.execute("""select pg_notify('orders', '{"id": 42}')""")
        until(lambda: "orders {'id': 42}\n" in log.read_text())
        child.send_signal(signum)
        assert child.wait(10) == 0
    assert sorted(log.read_text().splitlines()) == [
        "orders {'id': 42}",
        "read customers for the first time",
        "read orders for the first time",
        "stopped",
    ]
