"""docs/recipes/asyncio.md: contract 8, 9, 10 and 11 on an event loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import until

from .conftest import Database
from .page import load, process, write

LISTENING = load("asyncio.md", "listening.py")
events, open_notifier = LISTENING["events"], LISTENING["open_notifier"]
Heard, Listening = LISTENING["Heard"], LISTENING["Listening"]


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, 20))


async def next_of(stream: Any) -> Any:
    return await asyncio.wait_for(anext(stream), 10)


async def until_(condition: Any, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_events_come_in_order_with_their_gaps(database: Database) -> None:
    """Contract 8, 10: listening is told first, and again after a killed session, before what comes later."""

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
        assert notifier.subscribers() == {}

    run(main())


def test_a_full_queue_waits_and_stopping_lets_go_of_it(database: Database) -> None:
    """Contract 9, 11: nothing is lost behind a slow consumer, too much is told, and leaving takes no ten seconds."""

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
    """Contract 11: connecting, subscribing and stopping are on threads."""

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
        finally:
            LISTENING["Notifier"] = real
        assert len(threads) == 4

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
            assert notifier.subscribers() == {}

    run(main())
    assert most == 3
    assert sorted(handled) == list(range(len(handled)))
    assert len(handled) >= 18


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_service(database: Database, tmp_path: Path, signum: signal.Signals) -> None:
    """Contract 11: as it is pasted and run, ended by a signal, quietly."""
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
