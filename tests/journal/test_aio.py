"""AsyncNotifier: consumers whose callback is a coroutine function (guarantees 17 and 18)."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import AsyncNotifier, Notifier
from pgnotifier.journal import Consumer, Entry, Journal
from pgnotifier.journal.upkeep import prepare

from .reading import PUBLISH, effects, run

AConn = psycopg.AsyncConnection[Any]


async def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.005)


async def awrite(entry: Entry, conn: AConn) -> None:
    await conn.execute("insert into effect (id, payload) values (%s, %s)", [entry.id, str(entry.payload)])


def notifier(dsn: str) -> AsyncNotifier:
    return AsyncNotifier(dsn, retry_delay=(0.01, 0.1))


def test_a_callback_that_lets_a_cancellation_through(journal: Journal, dsn: str) -> None:
    """As of a task for which it has waited: a failure like any other, which `on_error` can end; nobody is stuck."""

    async def main() -> None:
        async def fn(entry: Entry, conn: AConn) -> None:
            await awrite(entry, conn)
            if entry.payload == 2:
                task = asyncio.create_task(asyncio.sleep(60))
                await asyncio.sleep(0)
                task.cancel()
                await task

        async with notifier(dsn) as n, await journal.consume(n, "mailer", "orders", fn, on_error="skip") as consumer:
            for number in (1, 2, 3):
                journal.publish("orders", number)
            await eventually(lambda: consumer.status()["delivered"] == 2)
            status = consumer.status()
            assert (status["failed"], status["skipped"]) == (5, 1)
            assert status["last_error"] == "CancelledError: "
        assert effects(dsn) == ["1", "3"]

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_coroutine_function(journal: Journal, dsn: str) -> None:
    """In the loop's thread, in one transaction with the position; its publishing too; no task is left."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        failures = iter([ValueError("no"), None, None, None])

        async def fn(entry: Entry, conn: AConn) -> None:
            assert asyncio.get_running_loop() is loop
            await awrite(entry, conn)
            await asyncio.sleep(0)
            if entry.payload == 2 and (error := next(failures)):
                raise error
            if entry.payload == 3:
                await journal.publish("orders", 4, conn)

        async with notifier(dsn) as n, await journal.consume(n, "mailer", "orders", fn) as consumer:
            async with await psycopg.AsyncConnection.connect(dsn) as conn:
                for number in (1, 2, 3):
                    await journal.publish("orders", number, conn)
            await eventually(lambda: consumer.status()["delivered"] == 4)
            assert consumer.status()["failed"] == 1
            assert "mailer" in repr(consumer)
            await eventually(lambda: len(asyncio.all_tasks()) == 1)
        assert not consumer.status()["running"]

    asyncio.run(main())
    assert effects(dsn) == ["1", "2", "3", "4"]


def test_gaps_and_plain_functions(journal: Journal, dsn: str) -> None:
    """`on_gap` may be either; a plain `fn` runs in a thread of the consumer's."""

    async def main() -> None:
        gaps: list[object] = []
        got: list[Entry] = []

        async def on_gap(name: str, channel: str, gap: object) -> None:
            await asyncio.sleep(0)
            gaps.append(gap)

        async def fn(entry: Entry, conn: AConn) -> None:
            got.append(entry)

        async with notifier(dsn) as n:
            async with await journal.consume(n, "mailer", "orders", lambda entry, conn: got.append(entry)):
                journal.publish("orders", 1)
                await eventually(lambda: len(got) == 1)
            journal.publish("orders", 2)
            await asyncio.to_thread(journal.trim, timedelta(0), True)
            async with await journal.consume(n, "mailer", "orders", fn, on_gap=on_gap):
                await eventually(lambda: gaps)
            with pytest.raises(TypeError, match="on_gap may be a coroutine function only if fn is one"):
                journal.consume(n, "mailer", "orders", lambda entry, conn: None, on_gap=on_gap)

    asyncio.run(main())


def test_a_session_killed_while_the_callback_awaits(journal: Journal, dsn: str) -> None:
    async def main() -> None:
        calls: list[int] = []

        async def fn(entry: Entry, conn: AConn) -> None:
            calls.append(entry.payload)
            await awrite(entry, conn)
            if len(calls) == 1:
                run(dsn, "select pg_terminate_backend(%s, 5000)", conn.info.backend_pid)
                await asyncio.sleep(0.05)

        async with notifier(dsn) as n, await journal.consume(n, "mailer", "orders", fn) as consumer:
            journal.publish("orders", 1)
            await eventually(lambda: effects(dsn) == ["1"])
            assert consumer.status()["failed"] == 0
        assert calls == [1, 1]

    asyncio.run(main())


@pytest.mark.parametrize("which", ["consumer", "notifier"])
def test_stop_in_the_callback(journal: Journal, dsn: str, which: str) -> None:
    """It waits for nothing; its entry is kept."""

    async def main() -> None:
        took: list[float] = []

        async def fn(entry: Entry, conn: AConn) -> None:
            began = time.monotonic()
            await (consumer if which == "consumer" else n).stop()
            took.append(time.monotonic() - began)
            await awrite(entry, conn)

        async with notifier(dsn) as n:
            consumer = await journal.consume(n, "mailer", "orders", fn)
            with psycopg.connect(dsn) as conn:
                for number in (1, 2):
                    conn.execute(PUBLISH, [number])
            await eventually(lambda: not consumer.status()["running"] and effects(dsn) == ["1"])
            assert took[0] < 2

    asyncio.run(main())


def test_stop_waits_for_the_call_and_no_longer_than_told(journal: Journal, dsn: str) -> None:
    """The loop is free meanwhile. A call that takes longer is cancelled, and its entry comes again."""

    async def main() -> None:
        began, cancelled = asyncio.Event(), asyncio.Event()

        async def fn(entry: Entry, conn: AConn) -> None:
            await awrite(entry, conn)
            began.set()
            try:
                await asyncio.sleep(0.3 if entry.payload == 1 else 60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with notifier(dsn) as n:
            for payload in (1, 2):
                consumer = await journal.consume(n, "mailer", "orders", fn)
                journal.publish("orders", payload)
                await began.wait()
                began.clear()
                await consumer.stop(10 if payload == 1 else 0.2)
                assert not consumer.status()["running"]
            await asyncio.wait_for(cancelled.wait(), 5)
            assert effects(dsn) == ["1"]

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["at once", "while it registers", "when it is through"])
def test_a_cancelled_consume_leaves_no_consumer(
    journal: Journal, dsn: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs, and nothing is called, afterwards."""
    steps: list[str] = []
    start = Consumer.start

    def slowly(*arguments: Any) -> None:
        steps.append("while it registers")
        time.sleep(0.2)
        prepare(*arguments)

    def start_slowly(consumer: Consumer) -> None:
        start(consumer)
        steps.append("when it is through")
        time.sleep(0.2)

    async def main() -> None:
        called: list[Entry] = []

        async def fn(entry: Entry, conn: AConn) -> None:
            called.append(entry)

        async with notifier(dsn) as n:
            monkeypatch.setattr("pgnotifier.journal.upkeep.prepare", slowly)
            monkeypatch.setattr(Consumer, "start", start_slowly)
            task = asyncio.ensure_future(journal.consume(n, "mailer", "orders", fn))
            if moment != "at once":
                await eventually(lambda: moment in steps)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.4)
            await eventually(lambda: "mailer" not in str(n.channels()))
            await asyncio.to_thread(journal.publish, "orders", 1)
            await asyncio.sleep(0.2)
            assert called == []
            async with await journal.consume(n, "mailer", "orders", fn):  # the name is free
                pass

    asyncio.run(main())


def test_system_exit_in_a_coroutine(journal: Journal, dsn: str) -> None:
    """It ends the loop, as in every task; the notifier and the consumer stop, and nothing is kept."""

    async def fn(entry: Entry, conn: AConn) -> None:
        await awrite(entry, conn)
        raise SystemExit(3)

    async def main() -> None:
        nonlocal consumer
        await n.start()
        consumer = await journal.consume(n, "mailer", "orders", fn)
        journal.publish("orders", 1)
        await asyncio.sleep(20)

    consumer: Any = None
    n = notifier(dsn)
    with pytest.raises(SystemExit):
        asyncio.run(main())
    until(lambda: not consumer.status()["running"])
    assert effects(dsn) == []
    asyncio.run(n.stop())


def test_the_loop_ends_under_a_consumer(journal: Journal, dsn: str) -> None:
    """It ends too, and says why; no thread is left."""

    async def fn(entry: Entry, conn: AConn) -> None:
        await awrite(entry, conn)

    async def main() -> Any:
        return await journal.consume(Seamed(n), "mailer", "orders", fn)

    class Seamed(AsyncNotifier):
        def __init__(self, n: Notifier) -> None:
            self._own(n)

    with Notifier(dsn, retry_delay=(0.01, 0.1)) as n:
        consumer = asyncio.run(main())
        journal.publish("orders", 1)
        until(lambda: not consumer.status()["running"])
        assert "loop is closed" in (consumer.status()["last_error"] or "")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_the_loop_is_closed_over_work_that_it_has_not_begun(journal: Journal, dsn: str, is_stopped: bool) -> None:
    """The consumer's thread ends all the same, and nothing is warned of."""

    async def fn(entry: Entry, conn: AConn) -> None: ...

    async def main() -> Consumer:
        return journal.consume(n, "mailer", "orders", fn)

    loop = asyncio.new_event_loop()
    with Notifier(dsn, retry_delay=(0.01, 0.1)) as n:
        consumer = loop.run_until_complete(main())
        loop.run_until_complete(eventually(lambda: consumer.status()["active"]))
        loop.run_until_complete(asyncio.sleep(0.5))  # it is idle
        if is_stopped:
            threading.Thread(target=consumer.stop).start()
        else:
            journal.publish("orders", 1)
        until(lambda: loop._ready)  # type: ignore[attr-defined]
        loop.close()
        until(lambda: not [t for t in threading.enumerate() if t.name == "pgnotifier-consumer-mailer"], 5)
        gc.collect()


def test_a_plain_notifier_with_a_coroutine_function(journal: Journal, dsn: str, n: Notifier) -> None:
    """`stop` on the loop that runs the callbacks does not wait for it."""

    async def main() -> None:
        async def fn(entry: Entry, conn: AConn) -> None:
            await awrite(entry, conn)

        consumer = journal.consume(n, "mailer", "orders", fn)
        journal.publish("orders", 1)
        await eventually(lambda: effects(dsn) == ["1"])
        began = time.monotonic()
        consumer.stop()
        assert time.monotonic() - began < 0.5
        await eventually(lambda: not consumer.status()["running"])

    asyncio.run(main())


def test_without_a_loop(journal: Journal, n: Notifier) -> None:
    async def fn(entry: Entry, conn: AConn) -> None: ...

    with pytest.raises(TypeError, match="no event loop is running here"):
        journal.consume(n, "mailer", "orders", fn)
