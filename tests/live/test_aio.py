"""Guarantee 17: AsyncNotifier, on asyncio's event loop and on uvloop's."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import anyio
import psycopg
import pytest

from conftest import until
from loops import cancelled_twice, given_up_by_anyio, run, seeded, threads, until_
from pgnotifier import (
    AsyncNotifier,
    Gap,
    InvalidChannel,
    Notifier,
    PayloadTooLong,
    UnknownChannel,
    UnknownSubscriber,
)

Conn = psycopg.Connection[Any]

AWAITED = {
    *("subscribe", "unsubscribe", "add_channels", "remove_channels", "notify", "start", "stop", "restart", "wait"),
    *("mute_channels", "unmute_channels", "mute_subscriber", "unmute_subscriber"),
}


@pytest.fixture(params=["asyncio", "debug", "uvloop"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


@pytest.fixture
def rng() -> random.Random:
    return seeded()


def listening(conn: Conn) -> int:
    """How many sessions of notifiers there are."""
    rows = conn.execute("select pid from pg_stat_activity where application_name = 'pgnotifier'").fetchall()
    return len(rows)


# -- the surface -----------------------------------------------------------------------------------------------------


def parameters(f: Any) -> dict[str, Any]:
    found = dict(inspect.signature(f).parameters)
    found.pop("loop", None)
    return {name: (p.kind, p.default, p.annotation) for name, p in found.items()}


def test_it_has_the_methods_of_notifier() -> None:
    """Guarantee 17: those that may wait are awaited, those that look are plain."""
    for name in dir(Notifier):
        if not name.startswith("_") and callable(getattr(Notifier, name)):
            mine = getattr(AsyncNotifier, name)
            assert parameters(mine) == parameters(getattr(Notifier, name)), name
            assert inspect.iscoroutinefunction(mine) == (name in AWAITED), name
            assert mine.__doc__, name
    assert AsyncNotifier.SYSCHAN == Notifier.SYSCHAN
    mine, its = parameters(AsyncNotifier), parameters(Notifier)
    assert mine == {name: its[name] for name in its if name not in ("daemon", "autostart")}


def test_it_connects_when_it_is_entered(server: str, channel: str, kind: str) -> None:
    """Guarantee 17: not when it is made. After the block nothing is left."""
    asked = []

    def dbconf() -> str:
        asked.append(threading.current_thread())
        return server

    async def main() -> None:
        n = AsyncNotifier(dbconf)
        await n.subscribe("s", channel, print)
        await until_(lambda: threads() == [])
        assert (asked, n.is_running(), n.active_channels()) == ([], False, [])
        for _ in range(2):
            async with n as same:
                assert same is n
                assert (n.is_running(), n.status()["connected"], n.active_channels()) == (True, True, [channel])
                assert threading.current_thread() not in asked
            assert (n.is_running(), n.status()["connected"]) == (False, False)
            await until_(lambda: threads() == [])
        await n.start()
        assert n.is_running()
        await n.stop()
        await n.stop()
        assert not n.is_running()

    run(main(), kind)


def test_no_task_and_no_thread_between_calls(server: str, channel: str, kind: str) -> None:
    """Guarantee 17."""

    async def heard(*a: Any) -> None: ...

    async def main() -> None:
        before = asyncio.all_tasks()
        async with AsyncNotifier(server) as n:
            await n.subscribe("s", channel, heard)
            await n.notify(channel, 1)
            await until_(lambda: n.status()["delivered"] == 1)
            assert asyncio.all_tasks() == before
            await until_(lambda: threads() == ["pgnotifier-listener", "pgnotifier-worker-1"])

    run(main(), kind)


# -- changes ---------------------------------------------------------------------------------------------------------


def test_subscribed_means_in_effect(server: str, sender: Conn, channel: str, kind: str) -> None:
    """Guarantees 5, 17: what commits after `await subscribe` is delivered, after unsubscribe no longer."""
    heard: list[Any] = []

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            for number in range(20):
                name = f"{channel}{number}"
                await n.subscribe("s", name, lambda *a: heard.append(a[2]))
                sender.execute("select pg_notify(%s, %s)", (name, str(number)))
                await until_(lambda number=number: heard[-1:] == [number])
                await n.unsubscribe("s", name)
                sender.execute("select pg_notify(%s, 'late')", (name,))
            await n.notify(n.SYSCHAN, "the last")
            assert heard == list(range(20))
            assert (n.subscribers(), n.active_channels()) == ({}, [])

    run(main(), kind)


def test_changes_keep_their_order(server: str, rng: random.Random, kind: str) -> None:
    """Guarantee 17: calls that are made without awaiting one another end as if each had been awaited."""
    names = [f"order_{number}" for number in range(4)]

    async def main() -> None:
        model = Notifier(server, autostart=False)
        async with AsyncNotifier(server) as n:
            tasks = []
            for number in range(300):
                name, id = rng.choice(names), rng.choice("xy")
                method, args = rng.choice(
                    [
                        ("subscribe", (id, name, [print, repr, list][number % 3], rng.random() < 0.8)),
                        ("unsubscribe", (id, name)),
                        ("mute_channels", (name,)),
                        ("unmute_channels", ()),
                        ("mute_subscriber", (id,)),
                        ("unmute_subscriber", (id, name)),
                        ("add_channels", (name,)),
                        ("remove_channels", (name, rng.random() < 0.5)),
                    ]
                )
                if method == "subscribe":
                    args = (id, name, lambda *a: None, args[3])
                tasks.append((asyncio.ensure_future(getattr(n, method)(*args)), method, args))
                if rng.random() < 0.1:
                    await asyncio.sleep(rng.random() * 0.003)
            for task, method, args in tasks:
                mine = its = None
                try:
                    await task
                except (UnknownChannel, UnknownSubscriber) as error:
                    mine = str(error)
                try:
                    getattr(model, method)(*args)
                except (UnknownChannel, UnknownSubscriber) as error:
                    its = str(error)
                assert mine == its
            await n.restart()
            for state in (mine_ := n.channels()).values():
                state["active"] = False
            assert mine_ == model.channels()
            wanted = [
                c for c, s in mine_.items() if not s["mute"] and any(not x["mute"] for x in s["subscribers"].values())
            ]
            assert n.active_channels() == sorted(wanted)

    run(main(), kind)


def test_changes_that_wait_share_a_listener_thread(server: str, channel: str) -> None:
    """Guarantee 17: 500 at once restart the listener some ten times."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            names = sorted(f"{channel}{number:03}" for number in range(500))
            await asyncio.gather(*(n.subscribe("s", name, print) for name in names))
            assert n.active_channels() == names
            assert n.status()["restarts"] < 100

    run(main(), "asyncio")


@pytest.fixture
def latin(server: str) -> Iterator[str]:
    """A database whose encoding does not hold every name."""
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute("create database aio_latin encoding 'LATIN1' locale 'C' template template0")
        yield server.replace("/postgres?", "/aio_latin?")
        conn.execute("drop database aio_latin with (force)")


def test_a_name_that_is_refused_harms_no_change_that_waits_with_it(latin: str, channel: str) -> None:
    """Guarantees 5, 17: that call raises, and the others are in effect."""

    async def main() -> None:
        async with AsyncNotifier(latin) as n:
            names = [f"{channel}{number}" for number in range(10)]
            names[5] = "\u4e2d"
            results = await asyncio.gather(*(n.subscribe("s", c, print) for c in names), return_exceptions=True)
            assert results.count(None) == 9
            assert isinstance(results[5], psycopg.Error)
            names.remove("\u4e2d")
            assert n.active_channels() == sorted(n.channels()) == names

    run(main())


@pytest.mark.parametrize(
    ("method", "args", "kind_of_error"),
    [
        ("subscribe", ([], "a", print), TypeError),
        ("subscribe", ("s", "", print), InvalidChannel),
        ("subscribe", ("s", "a", 1), TypeError),
        ("subscribe", ("s", "a", lambda x: x), TypeError),
        ("unsubscribe", ("s", "x" * 64), InvalidChannel),
        ("add_channels", (["ok", 1],), TypeError),
        ("remove_channels", ("a\0",), InvalidChannel),
        ("mute_channels", ("unknown",), UnknownChannel),
        ("unmute_channels", (b"a",), TypeError),
        ("mute_subscriber", ("nobody",), UnknownSubscriber),
        ("unmute_subscriber", ("nobody", "a"), UnknownSubscriber),
        ("notify", ("", 1), InvalidChannel),
        ("notify", ("a", "x" * 8000), PayloadTooLong),
        ("notify", ("a", object()), TypeError),
        ("stop", ("soon",), ValueError),
        ("wait", ("long",), ValueError),
    ],
)
def test_errors_are_those_of_notifier(server: str, method: str, args: Any, kind_of_error: type[Exception]) -> None:
    """Guarantees 12, 17: raised where the call is awaited, with the same text, and nothing has changed."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            with Notifier(server) as same, pytest.raises(kind_of_error) as its:
                getattr(same, method)(*args)
            call = getattr(n, method)(*args)
            with pytest.raises(kind_of_error) as mine:
                await call
            assert type(mine.value) is type(its.value)
            assert str(mine.value) == str(its.value)
            assert (n.channels(), n.is_running()) == ({}, True)

    run(main())


def test_a_server_that_is_not_there(kind: str) -> None:
    """Guarantees 2, 17: `start` raises as the constructor of Notifier does, and it is stopped."""

    async def main() -> None:
        n = AsyncNotifier("host=127.0.0.1 port=1")
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError):
                await n.start()
        with pytest.raises(psycopg.OperationalError):
            async with n:
                raise AssertionError("the block is not entered")
        with pytest.raises(psycopg.OperationalError):
            await n.notify("a")
        assert not n.is_running()
        assert await n.wait()

    run(main(), kind)


def test_a_dbconf_that_raises_stop_iteration() -> None:
    """Guarantee 17: a future refuses that error, and the call does not hang."""

    def dbconf() -> str:
        raise StopIteration

    async def main() -> None:
        with pytest.raises((RuntimeError, psycopg.Error)):
            await AsyncNotifier(dbconf).start()

    run(main())


# -- sending ---------------------------------------------------------------------------------------------------------


def test_notifications_are_sent_in_the_order_of_the_calls(server: str, channel: str, kind: str) -> None:
    """Guarantees 13, 17."""
    heard: list[Any] = []

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            await n.subscribe("s", channel, lambda *a: heard.append(a[2]))
            await asyncio.gather(*(n.notify(channel, {"n": number}) for number in range(100)))
            await until_(lambda: len(heard) == 100)
            assert heard == [{"n": number} for number in range(100)]

    run(main(), kind)


# -- callbacks -------------------------------------------------------------------------------------------------------


def test_where_callbacks_run(server: str, channel: str, kind: str) -> None:
    """Guarantees 8, 17: coroutine functions on the loop of the start, plain ones on a worker."""
    seen: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
            assert asyncio.get_running_loop() is loop
            seen.append(asyncio.current_task())

        async def told(id: Any, name: str, gap: Gap | None) -> None:
            assert asyncio.get_running_loop() is loop
            seen.append(gap)

        n = AsyncNotifier(server)
        await n.subscribe("before", channel, heard, on_listen=told)
        async with n:
            await n.subscribe("plain", channel, lambda *a: seen.append(threading.current_thread().name))
            await until_(lambda: seen == [None])
            await n.notify(channel)
            await until_(lambda: len(seen) == 3)
            assert "pgnotifier-worker-1" in seen
            assert asyncio.current_task() not in seen
            assert n.status()["failed"] == 0

    run(main(), kind)


def test_stop_in_a_callback_waits_for_none(server: str, channel: str, kind: str) -> None:
    """Guarantees 11, 17: in the callback's task, and in a task that it awaits."""

    async def main() -> None:
        for within in (False, True):
            took: list[float] = []
            n = AsyncNotifier(server)

            async def last(*a: Any, n: AsyncNotifier = n, within: bool = within, took: list[float] = took) -> None:
                since = time.monotonic()
                await (asyncio.create_task(n.stop()) if within else n.stop())
                took.append(time.monotonic() - since)

            await n.start()
            await n.subscribe("s", channel, last)
            await n.notify(channel)
            await until_(lambda took=took: took)
            assert took[0] < 2
            assert not n.is_running()
            assert await n.wait(5)

    run(main(), kind)


def test_stop_elsewhere_lets_callbacks_finish(server: str, channel: str, kind: str) -> None:
    """Guarantees 11, 17: also one whose callback has begun the task that stops, and has ended."""

    async def main() -> None:
        ended = []
        n = AsyncNotifier(server)
        await n.start()
        go, background = asyncio.Event(), set()

        async def stop_later() -> None:
            await go.wait()
            await n.stop()
            ended.append("stop")

        async def spawns(*a: Any) -> None:
            background.add(asyncio.create_task(stop_later()))

        async def slow(*a: Any) -> None:
            go.set()
            await asyncio.sleep(0.3)
            ended.append("slow")

        await n.subscribe("spawns", channel, spawns)
        await n.notify(channel)
        await until_(lambda: background)
        await n.unsubscribe("spawns", channel)
        await n.subscribe("slow", channel, slow)
        await n.notify(channel)
        await n.wait()
        await asyncio.gather(*background)
        assert ended == ["slow", "stop"]

    run(main(), kind)


def test_drain_on_its_own_loop(server: str, channel: str, kind: str) -> None:
    """Guarantees 11, 17: `stop(drain=True)` delivers what waits, on the loop that awaits it."""
    heard: list[Any] = []

    async def slow(id: Any, name: str, payload: Any, pid: int) -> None:
        await asyncio.sleep(0.005)
        heard.append(payload)

    async def main() -> None:
        n = AsyncNotifier(server)
        await n.start()
        await n.subscribe("s", channel, slow)
        for number in range(30):
            await n.notify(channel, number)
        await until_(lambda: n.status()["received"] >= 30)
        await n.stop(drain=True)
        assert heard == list(range(30))

    run(main(), kind)


def test_after_unsubscribe_the_callback_is_released(server: str, channel: str) -> None:
    """Guarantees 11, 17: also after a cancelled subscribe."""

    class Owner:
        async def heard(self, *a: Any) -> None: ...

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            owners = [Owner() for _ in range(20)]
            refs = [weakref.ref(owner) for owner in owners]
            await n.subscribe("s", channel, owners[0].heard)
            await n.notify(channel)
            await until_(lambda: n.status()["delivered"] == 1)
            await n.unsubscribe("s", channel)
            for number, owner in enumerate(owners[1:]):
                task = asyncio.ensure_future(n.subscribe(number, f"{channel}_{number}", owner.heard))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():  # it was fast
                    await n.unsubscribe(number, f"{channel}_{number}")
            del owners, owner, task
            await until_(lambda: gc.collect() >= 0 and all(ref() is None for ref in refs))

    run(main())


# -- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_up", [given_up_by_anyio, cancelled_twice])
def test_cancelled_subscribes_leave_nothing(
    server: str, sender: Conn, rng: random.Random, kind: str, given_up: Any
) -> None:
    """Guarantee 17: no subscription, no channel, no LISTEN, no thread and no task."""

    async def client(n: AsyncNotifier, number: int) -> None:
        async def heard(*a: Any) -> None: ...

        await n.subscribe(number, f"wave_{number % 40}", heard)
        try:
            await asyncio.sleep(0.002)
        finally:
            await n.unsubscribe(number, f"wave_{number % 40}")

    async def main() -> None:
        before = asyncio.all_tasks()
        async with AsyncNotifier(server) as n:
            for wave in range(6):
                calls = [given_up(client(n, wave * 40 + number), rng.random() * 0.02) for number in range(40)]
                await asyncio.gather(*calls)
            await until_(lambda: n.subscribers() == {} and n.active_channels() == [])
            await until_(lambda: threads() == ["pgnotifier-listener", "pgnotifier-worker-1"])
            assert asyncio.all_tasks() == before
            await n.subscribe("after", "wave_after", print)  # the next change sees what is pending
            assert n.active_channels() == ["wave_after"]

    run(main(), kind)


def test_a_cancelled_subscribe_leaves_the_registry_as_it_was(server: str, rng: random.Random, kind: str) -> None:
    """Guarantee 17: a replaced callback is back, a new channel gone; if it was too late, all is there."""

    async def old(*a: Any) -> None: ...

    async def new(*a: Any) -> None: ...

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            await n.subscribe("s", "kept", old)
            await n.mute_subscriber("s")
            await n.add_channels("added")
            before = n.channels()
            outcomes = set()
            for _ in range(60):
                for name in ("kept", "added", "fresh"):
                    call = asyncio.ensure_future(n.subscribe("s" if name == "kept" else "t", name, new))
                    for _ in range(rng.randrange(3)):
                        await asyncio.sleep(0)
                    await asyncio.sleep(rng.random() * 0.002)
                    call.cancel()
                    await asyncio.wait([call])
                    await n.notify("flush")
                    await n.add_channels(())  # comes after what was undone
                    outcomes.add(call.cancelled())
                    if not call.cancelled():
                        assert n.channels() != before
                        await n.unsubscribe("t", name)
                        if name == "kept":
                            await n.subscribe("s", "kept", old)
                        if name == "fresh":
                            await n.remove_channels("fresh")
                    assert n.channels() == before
                    assert n.active_channels() == []
            assert True in outcomes

    run(main(), kind)


def test_other_changes_take_effect_although_their_task_is_cancelled(server: str, channel: str, kind: str) -> None:
    """Guarantee 17: so that a cancelled task's clean-up can unsubscribe, mute and stop."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            await n.subscribe("s", channel, print)
            await n.subscribe("t", channel, print)
            with anyio.CancelScope() as scope:
                scope.cancel()
                try:
                    await asyncio.sleep(1)
                finally:
                    await n.unsubscribe("s", channel)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await n.mute_subscriber("t")
            await until_(lambda: n.muted_subscribers() == {channel: ["t"]} and n.active_channels() == [])
            with anyio.CancelScope() as scope:
                scope.cancel()
                await n.stop()
            assert await n.wait(5)
            assert not n.is_running()

    run(main(), kind)


def test_a_cancelled_block_stops(server: str, channel: str, kind: str) -> None:
    """Guarantee 17: leaving `async with` in a scope that is cancelled."""

    async def main() -> None:
        with anyio.move_on_after(0.2):
            async with AsyncNotifier(server) as n:
                await n.subscribe("s", channel, print)
                await asyncio.sleep(10)
        assert await n.wait(5)
        await until_(lambda: threads() == [])

    run(main(), kind)


@pytest.mark.parametrize("given_up", [given_up_by_anyio, cancelled_twice])
def test_cancelled_starts_leave_it_stopped(
    server: str, sender: Conn, rng: random.Random, kind: str, given_up: Any
) -> None:
    """Guarantee 17: `start` and the entry of `async with`, at any moment; the next start works."""

    started = []

    async def start(n: AsyncNotifier) -> None:
        await n.start()
        started.append(True)

    async def enter(n: AsyncNotifier) -> None:
        async with n:
            await asyncio.sleep(10)

    async def main() -> None:
        n = AsyncNotifier(server)
        outcomes = set()
        for number in range(40):
            started.clear()
            await given_up(enter(n) if number % 2 else start(n), rng.random() * 0.012)
            outcomes.add(bool(started))
            if started:
                assert n.status()["connected"]
                await n.stop()
            elif rng.random() < 0.5:
                await n.start()  # comes after the stop that follows
                assert n.status()["connected"]
                await n.stop()
            else:
                await until_(lambda: threads() == [])
            assert not n.is_running()
        assert False in outcomes
        await until_(lambda: threads() == [] and listening(sender) == 0)
        async with n:
            assert n.status()["connected"]

    run(main(), kind)


def test_one_of_two_starts_is_cancelled_when_the_other_has_succeeded_unnoticed(server: str, kind: str) -> None:
    """Guarantee 17: its task goes on only later, and finds it started."""

    async def main() -> None:
        n = AsyncNotifier(server)
        first, second = (asyncio.ensure_future(n.start()) for _ in range(2))
        await asyncio.sleep(0)
        until(lambda: n.status()["connected"])  # the loop stands still meanwhile
        time.sleep(0.05)
        first.cancel()
        await second
        await asyncio.sleep(0.05)
        assert n.is_running()
        await n.stop()

    run(main(), kind)


@pytest.mark.parametrize("kind_of_start", ["start", "enter"])
def test_a_start_that_is_cancelled_after_it_has_succeeded(server: str, kind: str, kind_of_start: str) -> None:
    """Guarantee 17: its task was cancelled before it could go on, so nobody would stop it."""

    async def main() -> None:
        n = AsyncNotifier(server)
        starting = asyncio.ensure_future(n.start() if kind_of_start == "start" else n.__aenter__())
        await asyncio.sleep(0)
        until(lambda: n.status()["connected"])  # the loop stands still meanwhile
        time.sleep(0.05)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        await until_(lambda: threads() == [])
        assert not n.is_running()

    run(main(), kind)


def test_starts_and_stops_keep_their_order(server: str, rng: random.Random, kind: str) -> None:
    """Guarantee 17: afterwards it is as the last call says."""

    async def main() -> None:
        n = AsyncNotifier(server)
        for _ in range(30):
            calls, last = [], ""
            for _ in range(rng.randrange(1, 5)):
                last = rng.choice(["start", "stop"])
                calls.append(asyncio.ensure_future(getattr(n, last)()))
                await asyncio.sleep(rng.choice([0, 0, 0.001, 0.005]))
            await asyncio.gather(*calls)
            assert n.is_running() == (last == "start")
        await n.stop()

    run(main(), kind)


def test_one_of_two_starts_is_cancelled(server: str, kind: str) -> None:
    """Guarantee 17: the other one has it started."""

    async def main() -> None:
        n = AsyncNotifier(server)
        first, second = (asyncio.ensure_future(n.start()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        await asyncio.sleep(0.05)
        assert n.is_running()
        third = asyncio.ensure_future(n.start())  # applies what is pending
        await asyncio.sleep(0)
        third.cancel()
        await asyncio.sleep(0.05)
        assert n.is_running()
        await n.stop()

    run(main(), kind)


def test_wait(server: str, kind: str) -> None:
    """Guarantees 11, 17: with a time-out, cancelled, and ended by a stop; it needs no thread."""

    async def main() -> None:
        n = AsyncNotifier(server)
        assert await n.wait()
        async with n:
            assert await n.wait(0) is False
            assert await n.wait(0.05) is False
            with anyio.move_on_after(0.05):
                await n.wait()
            alive = threading.active_count()
            stopped = n._notifier._supervisor.shared.stopped
            assert not stopped.is_watched
            waiting = [asyncio.ensure_future(n.wait(timeout)) for timeout in (None, 20, float("inf"))]
            await asyncio.sleep(0.05)
            assert threading.active_count() == alive
            assert not any(task.done() for task in waiting)
        assert await asyncio.gather(*waiting) == [True] * 3
        assert not stopped.is_watched  # as the one that was cancelled, these have left nothing

    run(main(), kind)


# -- loops and the process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [True, False])
def test_again_on_another_loop(server: str, channel: str, kind: str, stopped: bool) -> None:
    """Guarantee 17: coroutine functions move with it; also if the loop was closed with the notifier running."""
    loops: list[Any] = []

    async def heard(*a: Any) -> None:
        loops.append(asyncio.get_running_loop())

    n = AsyncNotifier(server)

    async def main(first: bool, last: bool) -> None:
        await n.start()
        if first:
            await n.subscribe("s", channel, heard)
        await n.notify(channel)
        await until_(lambda: loops)
        assert loops == [asyncio.get_running_loop()]
        loops.clear()
        if stopped or last:
            await n.stop()

    for number in range(3):
        run(main(number == 0, number == 2), kind)


def test_changes_from_another_loop_run_where_it_was_started(server: str, channel: str) -> None:
    """Guarantee 17."""
    loops: list[Any] = []

    async def heard(*a: Any) -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            other = threading.Thread(target=lambda: run(n.subscribe("s", channel, heard)))
            other.start()
            await until_(lambda: not other.is_alive())
            await n.notify(channel)
            await until_(lambda: loops)
            assert loops == [asyncio.get_running_loop()]

    run(main())


def script(server: str, body: str) -> tuple[int, str, str]:
    text = "import asyncio, os, sys, threading, time\nfrom pgnotifier import AsyncNotifier\n" + textwrap.dedent(body)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text, server],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    return process.returncode, out, err


def test_the_interpreter_ends_with_the_loop_closed_and_it_running(server: str) -> None:
    """Guarantees 11, 17: within a second, quietly, also with a call that never ends."""
    since = time.monotonic()
    ended = script(
        server,
        """
        n = AsyncNotifier(sys.argv[1])
        begun = threading.Event()
        async def main():
            await n.start()
            async def heard(*a):
                begun.set()
                await asyncio.sleep(0)
            await n.subscribe(1, "exit", heard)
            await n.subscribe(2, "exit", lambda *a: time.sleep(30))
            await n.notify("exit")
            while not begun.is_set():
                await asyncio.sleep(0.01)
        asyncio.run(main())
        print("end")
        """,
    )
    assert ended == (0, "end\n", "")
    assert time.monotonic() - since < 5


@pytest.mark.skipif(sys.version_info[:3] in [(3, 12, 0), (3, 12, 1)], reason="refuse threads after the main one")
def test_after_the_main_thread_has_ended(server: str) -> None:
    """Guarantees 5, 17: where asyncio's own executor refuses."""
    ended = script(
        server,
        """
        async def main():
            threading.main_thread().join()
            try:
                await asyncio.to_thread(print)
            except RuntimeError:
                print("refused")
            async with AsyncNotifier(sys.argv[1]) as n:
                heard = asyncio.Event()
                async def callback(*a):
                    heard.set()
                await n.subscribe(1, "late", callback)
                await n.notify("late")
                await heard.wait()
                await n.unsubscribe(1, "late")
            print("end")
        threading.Thread(target=lambda: asyncio.run(main())).start()
        """,
    )
    assert ended == (0, "refused\nend\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_forked_child(server: str) -> None:
    """Guarantees 11, 17: it starts stopped, whatever was under way, and has a session of its own."""
    ended = script(
        server,
        """
        n = AsyncNotifier(sys.argv[1])
        async def begin():
            await n.start()
            busy = [asyncio.ensure_future(n.subscribe(i, f"fork_{i}", lambda *a: None)) for i in range(200)]
            await asyncio.sleep(0.003)
            return busy
        async def parent(busy, child):
            await asyncio.gather(*busy)
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            assert len(n.active_channels()) == 200
            await n.stop()
            print("parent")
            sys.stdout.flush()
            os._exit(0)
        async def in_child():
            assert not n.is_running()
            await n.start()
            await n.subscribe("child", "fork_child", print)
            assert "fork_child" in n.active_channels()
            await n.notify("fork_x")
            await n.stop()
            print("child", flush=True)
            os._exit(0)
        loop = asyncio.new_event_loop()
        if sys.version_info >= (3, 12):
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)
        busy = loop.run_until_complete(begin())
        if child := os.fork():  # outside of the loop: on Python 3.14 a child cannot run on in it
            loop.run_until_complete(parent(busy, child))
        own = threading.Thread(target=lambda: asyncio.run(in_child()))
        own.start()
        own.join()
        """,
    )
    assert ended == (0, "child\nparent\n", "")
