"""docs/recipes/asyncio.md: guarantees 10, 11 and 17 in a service."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import until
from pgnotifier import AsyncNotifier, Listening, StreamClosed

from .conftest import Database
from .page import load, process, write


def run(main: Any) -> None:
    asyncio.run(asyncio.wait_for(main, 20))


async def until_(condition: Any, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def left(notifier: AsyncNotifier) -> tuple[Any, ...]:
    """What may not be left behind."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return notifier.subscribers(), notifier.active_channels(), len(tasks)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_service(database: Database, tmp_path: Path, signum: signal.Signals) -> None:
    """Guarantees 10, 11, 17: as it is pasted and run; the database restarts; ended by a signal, quietly."""
    write("asyncio.md", tmp_path, "service.py")
    log = tmp_path / "log"
    with process(tmp_path, "service.py", DATABASE_URL=database.dsn) as child:
        until(lambda: child.poll() is not None or "for the first time\n" in log.read_text(), 20)
        database.execute("""select pg_notify('orders', '{"id": 42}')""")
        until(lambda: "orders {'id': 42}\n" in log.read_text())
        with database.unreachable():
            database.execute("select pg_notify('orders', 'missed')")
        until(lambda: "again\n" in log.read_text())
        database.execute("select pg_notify('customers', 'heard')")
        until(lambda: "customers heard\n" in log.read_text())
        child.send_signal(signum)
        assert child.wait(10) == 0
    logged = "the connection", "connecting again", "connected again", "reconnected"
    printed = [line for line in log.read_text().splitlines() if not line.startswith(logged)]
    assert printed == [
        "read orders customers for the first time",
        "orders {'id': 42}",
        "read orders customers again",
        "customers heard",
        "stopped",
    ]
    until(lambda: database.listeners() == [])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.TaskGroup came with Python 3.11")
def test_consumers_in_a_group(database: Database) -> None:
    """Each event goes to one of them; the first error ends them all, and the subscription."""
    share_out = load("asyncio.md", "group", asyncio=asyncio)["share_out"]
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
        async with AsyncNotifier(database.dsn) as notifier:
            before = left(notifier)
            with pytest.raises(BaseException) as caught:  # noqa: PT011
                await share_out(notifier, "c", handle)
            assert [str(error) for error in caught.value.exceptions] == ["'enough'"]  # type: ignore[attr-defined]
            await until_(lambda: left(notifier) == before)

            sharing = asyncio.ensure_future(share_out(notifier, "c", lambda event: asyncio.sleep(0)))
            await until_(lambda: notifier.active_channels() == ["c"])
            await notifier.stop()
            await asyncio.wait_for(sharing, 5)

    run(main())
    assert most == 3
    assert sorted(handled) == list(range(len(handled)))
    assert len(handled) >= 18


def test_either_an_event_or_the_end(database: Database) -> None:
    """Guarantee 17: the `get` that is cancelled has taken nothing."""
    until_told = load("asyncio.md", "either", asyncio=asyncio)["until_told"]

    async def main() -> None:
        async with AsyncNotifier(database.dsn) as notifier, notifier.listen("c") as stream:
            shutdown = asyncio.Event()
            assert await until_told(stream, shutdown) == Listening(("c",), ())
            shutdown.set()
            assert await until_told(stream, shutdown) is None
            shutdown.clear()
            await notifier.notify("c", 1)
            assert (await until_told(stream, shutdown)).payload == 1
            shutdown.set()
            for number in range(100):
                await notifier.notify("c", number)
                event = await until_told(stream, shutdown)
                if event is None:
                    event = await stream.get(5)
                assert event.payload == number
            await notifier.stop()
            shutdown.clear()
            with pytest.raises(StreamClosed):
                await until_told(stream, shutdown)

    run(main())
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("pgnotifier-")])
