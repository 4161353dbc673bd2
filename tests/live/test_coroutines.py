"""Guarantees 8, 9, 10 and 11: `async def` callbacks, on the loop that was running or on `loop=`."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Gap, Notifier

Conn = psycopg.Connection[Any]
Loop = asyncio.AbstractEventLoop


class LoopThread:
    """An event loop that runs in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def end(self) -> None:
        """Stop and close it as it is, with whatever is still pending on it."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)
            self.loop.close()


@pytest.fixture
def running() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.end()


def send(conn: Conn, channel: str, first: int, last: int) -> None:
    conn.execute("select pg_notify(%s, i::text) from generate_series(%s::int, %s::int) i", (channel, first, last))


def test_on_the_loop_that_was_running(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 8: on that loop, one at a time for each id, in order; different ids at the same time."""
    got: dict[int, list[int]] = {1: [], 2: []}
    busy: set[int] = set()
    most = 0

    async def main() -> None:
        nonlocal most
        here = asyncio.get_running_loop()

        async def heard(id: int, name: str, payload: Any, pid: int) -> None:
            nonlocal most
            assert asyncio.get_running_loop() is here
            assert id not in busy
            busy.add(id)
            most = max(most, len(busy))
            await asyncio.sleep(0.001)
            busy.remove(id)
            got[id].append(payload)

        with Notifier(server) as n:
            for id in (1, 2):
                n.subscribe(id, channel, functools.partial(heard))
            send(sender, channel, 1, 200)
            while not len(got[1]) == len(got[2]) == 200:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(n.stop)
            assert n.status()["delivered"] == 400
            assert n.status()["failed"] == 0

    asyncio.run(asyncio.wait_for(main(), 30))
    assert got == {1: list(range(1, 201)), 2: list(range(1, 201))}
    assert most == 2


def test_on_the_loop_that_is_named(server: str, sender: Conn, channel: str, running: LoopThread) -> None:
    """Guarantee 8: an object whose call is a coroutine function, from a thread without a loop."""
    got: list[Any] = []

    class Heard:
        async def __call__(self, id: Any, name: str, payload: Any, pid: int) -> None:
            got.append((payload, threading.current_thread()))

    with Notifier(server) as n:
        n.subscribe(1, channel, Heard(), loop=running.loop)
        send(sender, channel, 1, 3)
        until(lambda: got == [(i, running.thread) for i in (1, 2, 3)])


def test_without_a_loop(server: str, channel: str) -> None:
    """Guarantee 8: TypeError, and nothing has changed; so for on_listen."""

    async def heard(*_: Any) -> None: ...

    with Notifier(server) as n:
        with pytest.raises(TypeError, match="loop="):
            n.subscribe(1, channel, heard)
        with pytest.raises(TypeError, match="loop="):
            n.subscribe(1, channel, print, on_listen=heard)
        assert n.channels() == {}


def test_a_function_that_returns_a_coroutine_is_told_so(
    server: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee 8: it is no coroutine function; a failing callback, not a warning that nobody sees."""

    async def heard(*_: Any) -> None: ...

    with Notifier(server) as n:
        n.subscribe(1, channel, lambda *a: heard(*a))
        n.notify(channel)
        until(lambda: n.status()["failed"] == 1)
    assert "subscribe the coroutine function itself" in caplog.text


def test_an_exception_fails_that_call_only(server: str, sender: Conn, channel: str, running: LoopThread) -> None:
    """Guarantees 6 and 8."""
    got: list[int] = []
    events: list[Any] = []

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        if payload == 2:
            raise RuntimeError("on purpose")
        got.append(payload)

    with Notifier(server) as n:
        n.subscribe("watch", Notifier.SYSCHAN, lambda *a: events.append(a[2]))
        n.subscribe(1, channel, heard, loop=running.loop)
        send(sender, channel, 1, 4)
        until(lambda: got == [1, 3, 4] and events)
        assert events == [
            {"event": "callback_failed", "id": 1, "channel": channel, "error": "RuntimeError: on purpose"}
        ]
        assert n.status()["failed"] == 1


# -- loops that end ------------------------------------------------------------------------------------------


def test_a_closed_loop_counts_as_a_failing_callback(
    server: str, sender: Conn, channel: str, running: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee 8: event, log, counter; the others are not harmed."""
    got: list[int] = []
    events: list[Any] = []

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        got.append(payload)

    with Notifier(server) as n, caplog.at_level(logging.ERROR, "pgnotifier"):
        n.subscribe("watch", Notifier.SYSCHAN, lambda *a: events.append(a[2]))
        n.subscribe("closed", channel, heard, loop=running.loop)
        n.subscribe("other", channel, lambda *a: got.append(a[2]))
        send(sender, channel, 1, 1)
        until(lambda: got == [1, 1])
        running.end()
        send(sender, channel, 2, 9)
        until(lambda: len(events) == 8)
        assert {(e["event"], e["id"], e["channel"]) for e in events} == {("callback_failed", "closed", channel)}
        until(lambda: got == [1, 1, *range(2, 10)])
        assert n.status()["failed"] == 8
        assert "'closed' failed" in caplog.text
        assert n.is_running()


def test_a_loop_closed_under_a_callback_is_no_reason_to_stop(
    server: str, sender: Conn, channel: str, running: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee 8: the call that was under way failed, and the next ones fail; the notifier and the others go on."""
    got: list[int] = []
    begun = threading.Event()

    async def hang(*_: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    with Notifier(server) as n:
        n.subscribe("closed", channel, hang, loop=running.loop)
        n.subscribe("other", channel, lambda *a: got.append(a[2]))
        send(sender, channel, 1, 1)
        assert begun.wait(10)
        running.end()
        send(sender, channel, 2, 5)
        send(sender, channel, 6, 9)
        until(lambda: got == list(range(1, 10)))
        until(lambda: n.status()["failed"] == 9)
        assert n.is_running()
        began = time.monotonic()
        n.stop()
        assert time.monotonic() - began < 2


@pytest.mark.filterwarnings("ignore")
def test_a_loop_that_is_closed_and_collected(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 8: the call that was under way failed, though the garbage collector ended it."""
    begun = threading.Event()

    async def hang(*_: Any) -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()  # nobody else refers to it

    def begin(n: Notifier) -> None:
        running = LoopThread()
        n.subscribe("closed", channel, hang, loop=running.loop)
        send(sender, channel, 1, 1)
        assert begun.wait(10)
        running.end()

    with Notifier(server) as n:
        begin(n)
        gc.collect()
        send(sender, channel, 2, 2)
        until(lambda: n.status()["failed"] == 2)


def test_stop_does_not_wait_for_a_loop_that_is_closed(
    server: str, sender: Conn, channel: str, running: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee 11: nothing on it will ever finish."""
    begun = threading.Event()

    async def hang(*_: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    for drain in (False, True):
        running = LoopThread()
        n = Notifier(server)
        n.subscribe(1, channel, hang, loop=running.loop)
        send(sender, channel, 1, 3)
        assert begun.wait(10)
        running.end()
        began = time.monotonic()
        n.stop(drain=drain)
        assert time.monotonic() - began < 2
        begun.clear()


def test_a_loop_that_never_runs(server: str, sender: Conn, channel: str) -> None:
    """Guarantees 9 and 11: bounded like any other that is stuck, and stop() does not wait for it."""
    got: list[int] = []

    async def heard(*_: Any) -> None: ...

    loop = asyncio.new_event_loop()
    with Notifier(server, workers=2, max_pending=50) as n:
        n.subscribe("never", channel, heard, loop=loop)
        n.subscribe("other", channel, lambda *a: got.append(a[2]))
        send(sender, channel, 1, 500)
        until(lambda: len(got) == 500)
        assert n.status()["pending"] <= 50
        assert n.status()["dropped"] >= 449
        began = time.monotonic()
        n.stop()
        assert time.monotonic() - began < 2
    loop.close()


def test_cancellation_inside_a_callback(server: str, sender: Conn, channel: str, running: LoopThread) -> None:
    """Guarantee 8: it fails that call; the next ones come."""
    got: list[int] = []

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        if payload == 1:
            raise asyncio.CancelledError
        if payload == 2:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(10)
        got.append(payload)

    with Notifier(server) as n:
        n.subscribe(1, channel, heard, loop=running.loop)
        send(sender, channel, 1, 5)
        until(lambda: got == [3, 4, 5])
        assert n.status()["failed"] == 2
        assert n.status()["delivered"] == 3


def test_the_end_of_asyncio_run(
    server: str, sender: Conn, channel: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Guarantees 8 and 11: its shutdown cancels what runs; what comes later fails; others and stop() are as ever."""
    got: list[int] = []
    begun = threading.Event()

    async def hang(*_: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def main() -> None:
        n.subscribe("ended", channel, hang)
        send(sender, channel, 1, 1)
        await asyncio.to_thread(begun.wait, 10)

    with Notifier(server) as n:
        n.subscribe("other", channel, lambda *a: got.append(a[2]))
        asyncio.run(main())
        until(lambda: n.status()["failed"] == 1)
        send(sender, channel, 2, 3)
        until(lambda: got == [1, 2, 3] and n.status()["failed"] == 3)
        assert n.is_running()
        began = time.monotonic()
        n.stop()
        assert time.monotonic() - began < 2
    assert "never awaited" not in capfd.readouterr().err


def test_a_call_that_only_its_own_future_refers_to_is_not_collected(
    server: str, sender: Conn, channel: str, running: LoopThread
) -> None:
    """Guarantee 8: an event loop holds its tasks weakly."""
    begun = threading.Event()

    async def hang(*_: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    with Notifier(server) as n:
        n.subscribe(1, channel, hang, loop=running.loop)
        send(sender, channel, 1, 1)
        assert begun.wait(10)
        for _ in range(10):
            gc.collect()
            time.sleep(0.01)
        calls = [task for task in asyncio.all_tasks(running.loop) if "hang" in str(task) or "_call" in str(task)]
        assert len(calls) == 1
        running.loop.call_soon_threadsafe(calls[0].cancel)
        until(lambda: n.status()["failed"] == 1)


# -- in the stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_on_listen_awaited_in_the_stream(
    server: str, sender: Conn, channel: str, running: LoopThread, plain: bool
) -> None:
    """Guarantee 10: the first time and after a gap, before what comes after; with a plain callback too."""
    seen: list[Any] = []

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        seen.append(payload)

    async def told(id: Any, name: str, gap: Gap | None) -> None:
        await asyncio.sleep(0.02)
        seen.append(gap.reason if gap else None)

    with Notifier(server) as n:
        fn = (lambda *a: seen.append(a[2])) if plain else heard
        n.subscribe(1, channel, fn, on_listen=told, loop=running.loop)
        send(sender, channel, 1, 2)
        until(lambda: len(seen) == 3)
        n.mute_subscriber(1)
        n.unmute_subscriber(1)
        send(sender, channel, 3, 3)
        until(lambda: len(seen) == 5)
        n.stop()
        n.start()
        send(sender, channel, 4, 4)
        until(lambda: len(seen) == 7)
    assert seen == [None, 1, 2, "muted", 3, "stopped", 4]


def test_a_plain_and_an_awaited_callback_of_one_id_keep_order(
    server: str, sender: Conn, channel: str, running: LoopThread
) -> None:
    """Guarantee 4: one at a time, in order, across the channels of an id, whatever runs them."""
    got: list[int] = []
    busy = threading.Lock()
    n = Notifier(server, workers=3)

    def plain(id: Any, name: str, payload: Any, pid: int) -> None:
        assert busy.acquire(blocking=False)
        got.append(payload)
        busy.release()

    async def awaited(id: Any, name: str, payload: Any, pid: int) -> None:
        assert busy.acquire(blocking=False)
        if payload % 20 == 0:
            await asyncio.sleep(0.001)
        got.append(payload)
        busy.release()

    with n:
        n.subscribe(1, f"{channel}p", plain)
        n.subscribe(1, f"{channel}a", awaited, loop=running.loop)
        sender.execute(
            "select pg_notify(%s || substr('ppaapaaap', 1 + i %% 9, 1), i::text) from generate_series(1, 2000) i",
            (channel,),
        )
        until(lambda: len(got) == 2000 or n.status()["failed"])
        assert got == list(range(1, 2001))


def test_a_callback_replaced_while_some_wait_on_the_loop(
    server: str, sender: Conn, channel: str, running: LoopThread
) -> None:
    """Guarantee 4: what was handed over and not begun goes to the new callback, in order."""
    got: list[Any] = []
    begun, release = threading.Event(), threading.Event()

    async def first(id: Any, name: str, payload: Any, pid: int) -> None:
        got.append(("first", payload))
        begun.set()
        while not release.is_set():
            await asyncio.sleep(0.005)

    with Notifier(server) as n:
        n.subscribe(1, channel, first, loop=running.loop)
        send(sender, channel, 1, 30)
        assert begun.wait(10)
        n.subscribe(1, channel, lambda *a: got.append(("second", a[2])))
        release.set()
        until(lambda: len(got) == 30)
    assert got == [("first", 1), *(("second", i) for i in range(2, 31))]


# -- overflow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
def test_overflow_stands_where_the_hole_is(
    server: str, sender: Conn, channel: str, running: LoopThread, replaced: bool
) -> None:
    """Guarantee 9: with what was handed to the loop before the hole, also where that comes back from it."""
    seen: list[Any] = []
    begun, release = threading.Event(), threading.Event()

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        seen.append(payload)
        begun.set()
        while not release.is_set():
            await asyncio.sleep(0.005)

    def told(id: Any, name: str, gap: Gap | None) -> None:
        seen.append(gap)

    with Notifier(server, max_pending=80) as n:
        n.subscribe(1, channel, heard, on_listen=told, loop=running.loop)
        send(sender, channel, 1, 8)
        assert begun.wait(10)
        send(sender, channel, 9, 500)
        until(lambda: n.status()["received"] == 500)
        assert n.status()["pending"] <= 80
        if replaced:
            n.subscribe(1, channel, lambda *a: seen.append(a[2]), on_listen=told)
        release.set()
        until(lambda: seen[-1:] == [500])
        n.stop(drain=True)
        dropped = n.status()["dropped"]
    due, told_of = 1, 0
    for before, x in zip([None, *seen[:-1]], seen, strict=True):
        if type(x) is int:
            missing = before.dropped if isinstance(before, Gap) and before.dropped else 0
            assert x == due + missing, seen
            due, told_of = x + 1, told_of + missing
    assert due == 501
    assert told_of == dropped > 300


def test_a_hole_behind_what_a_plain_callback_still_had_in_hand(
    server: str, sender: Conn, channel: str, running: LoopThread
) -> None:
    """Guarantee 9: a worker that comes to an awaited one in mid-hand gives the rest back, in its place."""
    seen: list[Any] = []
    begun, release = threading.Event(), threading.Event()
    plain, awaited = f"{channel}p", f"{channel}a"

    def hang(id: Any, name: str, payload: Any, pid: int) -> None:
        seen.append(payload)
        if payload in (0, 1):
            begun.set()
            release.wait(30)
            begun.clear()
            release.clear()

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        seen.append(payload)

    def told(id: Any, name: str, gap: Gap | None) -> None:
        seen.append(gap)

    with Notifier(server, max_pending=80) as n:
        n.subscribe(1, plain, hang, on_listen=told)
        n.subscribe(1, awaited, heard, on_listen=told, loop=running.loop)
        n.notify(plain, 0)
        until(begun.is_set)
        for i in range(1, 9):  # taken up together: the second is awaited, the third is given back
            n.notify(awaited if i == 2 else plain, i)
        until(lambda: n.status()["received"] == 9)
        release.set()
        until(lambda: 1 in seen and begun.is_set())
        send(sender, plain, 9, 500)
        until(lambda: n.status()["received"] == 501)
        release.set()
        until(lambda: seen[-1:] == [500])
    due = 0
    gaps: list[Gap] = []
    for x in seen:
        if isinstance(x, Gap):
            gaps.append(x)
        elif x is not None:
            assert x == due + sum(gap.dropped or 0 for gap in gaps)
            due, gaps = x + 1, []
    assert due == 501


# -- leaving -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["callback", "loop"])
def test_stop_on_the_loop_of_a_running_callback_returns_at_once(
    server: str, sender: Conn, channel: str, running: LoopThread, where: str
) -> None:
    """Guarantee 11: it could not wait for what runs on the loop that it blocks."""
    took: list[float] = []
    begun = threading.Event()

    def stop() -> None:
        began = time.monotonic()
        n.stop(drain=True)
        took.append(time.monotonic() - began)

    async def heard(*_: Any) -> None:
        begun.set()
        if where == "callback":
            stop()
        await asyncio.sleep(0.5)

    n = Notifier(server)
    n.subscribe(1, channel, heard, loop=running.loop)
    send(sender, channel, 1, 5)
    assert begun.wait(10)
    if where == "loop":
        running.loop.call_soon_threadsafe(stop)
    until(lambda: took)
    assert took[0] < 0.45  # less than the callback had still to run
    assert not n.is_running()
    until(lambda: n.status()["delivered"] == 1)
    assert n.status()["pending"] == 0


def test_stop_elsewhere_lets_it_finish(server: str, sender: Conn, channel: str, running: LoopThread) -> None:
    """Guarantee 11: running callbacks finish, what waits is dropped, or delivered with drain."""
    done: list[int] = []
    begun = threading.Event()

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        begun.set()
        await asyncio.sleep(0.05)
        done.append(payload)

    n = Notifier(server)
    n.subscribe(1, channel, heard, loop=running.loop)
    send(sender, channel, 1, 20)
    assert begun.wait(10)
    began = time.monotonic()
    n.stop()
    assert time.monotonic() - began < 3
    assert done == [1]
    n.start()
    send(sender, channel, 21, 40)
    until(lambda: n.status()["received"] == 40)
    n.stop(drain=True)
    assert done == [1, *range(21, 41)]


def test_subscribed_again_before_the_first_telling_was_awaited(server: str, channel: str) -> None:
    """Guarantee 10: the new subscription is told once, and hears; the earlier one's telling is not tried for ever."""
    got: list[Any] = []

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        got.append(payload)

    async def told(id: Any, name: str, gap: Gap | None) -> None:
        got.append(gap)

    async def main() -> None:
        with Notifier(server) as n:
            n.subscribe(1, channel, heard, on_listen=told)
            until(lambda: n._dispatcher.boxes[1].owner is not None)  # on its way to this loop, which is busy here
            n.unsubscribe(1, channel)
            n.subscribe(1, channel, heard, on_listen=told)
            n.notify(channel, 1)
            for _ in range(1000):
                if got[-1:] == [1]:
                    break
                await asyncio.sleep(0.01)
            assert got == [None, 1]

    asyncio.run(main())


# -- context variables -------------------------------------------------------------------------------------------


def test_each_call_has_a_context_of_its_own(server: str, sender: Conn, channel: str, running: LoopThread) -> None:
    """Guarantee 8: a variable that one call sets is not set in the next, nor in `on_listen`, nor in what follows."""
    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)
    seen: list[Any] = []

    async def told(id: Any, name: str, gap: Gap | None) -> None:
        seen.append(variable.get())
        variable.set("on_listen")
        await asyncio.sleep(0)
        seen.append(variable.get())

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        seen.append(variable.get())
        variable.set(payload)
        await asyncio.sleep(0)
        seen.append(variable.get())
        if payload == 2:
            raise RuntimeError("on purpose")

    with Notifier(server) as n:
        n.subscribe(1, channel, heard, on_listen=told, loop=running.loop)
        send(sender, channel, 1, 4)
        until(lambda: len(seen) == 10)
        n.unsubscribe(1, channel)
        n.subscribe(1, channel, heard, on_listen=told, loop=running.loop)
        until(lambda: len(seen) == 12)
    calls = ["on_listen", 1, 2, 3, 4, "on_listen"]
    assert seen == [value for call in calls for value in (None, call)]


def test_what_is_cancelled_before_it_has_begun_is_not_lost(
    server: str, sender: Conn, channel: str, running: LoopThread
) -> None:
    """Guarantee 4: whoever cancels all tasks of the loop fails the call that runs, and no other."""
    got: list[int] = []

    async def heard(id: Any, name: str, payload: Any, pid: int) -> None:
        got.append(payload)
        if payload % 7 == 0:
            for task in asyncio.all_tasks():
                task.cancel()
        await asyncio.sleep(0)

    def cancel_all() -> None:
        for task in asyncio.all_tasks(running.loop):
            task.cancel()

    with Notifier(server) as n:
        n.subscribe(1, channel, heard, loop=running.loop)
        for begin in range(1, 201, 20):
            send(sender, channel, begin, begin + 19)
            running.loop.call_soon_threadsafe(cancel_all)
        until(lambda: sum(n.status()[key] for key in ("delivered", "failed")) == 200)
        assert got == list(range(1, 201))
