"""Guarantee 17: AsyncStream, on asyncio's event loop and on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import threading
import weakref
from typing import Any

import anyio
import psycopg
import pytest

from conftest import until
from loops import IDLE, cancelled_twice, given_up_by_anyio, run, seeded, threads, until_
from pgnotifier import AsyncNotifier, AsyncStream, Gap, Listening, Notification, StreamClosed

Conn = psycopg.Connection[Any]

RUNS = 20 if os.environ.get("PGNOTIFIER_LONG") else 1  # of the waves of clients


@pytest.fixture(params=["asyncio", "debug", "uvloop"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return request.param


@pytest.fixture
def rng() -> random.Random:
    return seeded()


def send(sender: Conn, channel: str, numbers: range) -> None:
    """In one transaction."""
    sender.execute(
        "select pg_notify(%s, i::text) from generate_series(%s::int, %s::int) i",
        (channel, numbers.start, numbers.stop - 1),
    )


async def read_all(stream: AsyncStream) -> list[Any]:
    """Until it ends: payloads, and the gaps of each `Listening`."""
    return [e.payload if isinstance(e, Notification) else e.gaps async for e in stream]


async def take(stream: AsyncStream, count: int) -> list[Any]:
    return [(await stream.get(10)).payload for _ in range(count)]


def reasons(event: Any) -> set[tuple[str, str]]:
    assert isinstance(event, Listening)
    return {(gap.channel, gap.reason) for gap in event.gaps}


# -- entering, reading, leaving --------------------------------------------------------------------------------------


def test_entered_means_in_effect(server: str, sender: Conn, channel: str, kind: str) -> None:
    """Guarantees 16, 17: what commits after the entry comes, first of all that listening has begun."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            for number in range(20):
                names = f"{channel}{number}", "other"
                stream = n.listen(*names)
                assert stream.channels == names
                assert n.subscribers() == {}
                async with stream as same:
                    assert same is stream
                    assert n.active_channels() == sorted(names)
                    send(sender, names[0], range(3))
                    assert await stream.get(10) == Listening(names, ())
                    pid = sender.info.backend_pid
                    assert await stream.get(10) == Notification(names[0], 0, pid)
                    assert await take(stream, 2) == [1, 2]
                send(sender, names[0], range(1))
                await until_(lambda: n.active_channels() == [] and n.subscribers() == {})
            assert n.channels() == {}

    run(main(), kind)


def test_events_come_in_order(server: str, sender: Conn, channel: str, kind: str) -> None:
    """Guarantees 4, 16, 17: across channels, also what is sent on while it is read."""
    names = [f"{channel}{number}" for number in range(3)]
    total = 3000

    def traffic() -> None:
        for number in range(total):
            sender.execute("select pg_notify(%s, %s)", (names[number % 3], str(number)))

    async def main() -> None:
        async with AsyncNotifier(server) as n, n.listen(*names) as stream:
            sending = threading.Thread(target=traffic)
            sending.start()
            assert await stream.get(10) == Listening(tuple(names), ())
            for number in range(total):
                event = await stream.get(10)
                assert event[:2] == (names[number % 3], number)
            await until_(lambda: not sending.is_alive())
            assert n.status()["delivered"] == total

    run(main(), kind)


def test_get_and_its_timeout(server: str, channel: str, kind: str) -> None:
    """Guarantee 17."""

    async def main() -> None:
        async with AsyncNotifier(server) as n, n.listen(channel) as stream:
            await stream.get()
            loop = asyncio.get_running_loop()
            for seconds in (0, 0.05):
                since = loop.time()
                with pytest.raises(TimeoutError, match=f"nothing came within {seconds:g} seconds"):
                    await stream.get(seconds)
                assert seconds - 0.01 <= loop.time() - since < seconds + 0.5
            for wrong in ("soon", float("nan")):
                with pytest.raises(ValueError, match="timeout"):
                    await stream.get(wrong)  # type: ignore[arg-type]
            waiting = asyncio.ensure_future(stream.get(10))
            await asyncio.sleep(0.01)
            await n.notify(channel, "now")
            assert (await waiting)[:2] == (channel, "now")
            await n.notify(channel, "waits")
            await until_(lambda: n.status()["pending"] == 1)
            assert (await stream.get(0)).payload == "waits"
            assert not stream._stream.bell.is_watched  # those that timed out have left nothing

    run(main(), kind)


def test_outside_its_block(server: str, channel: str) -> None:
    """Guarantee 17: it is entered first, and once."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            stream = n.listen(channel)
            for read in (stream.get, stream.__anext__):
                with pytest.raises(RuntimeError, match="enter the stream first"):
                    await read()
            async with stream:
                with pytest.raises(RuntimeError, match="entered or closed already"):
                    await stream.__aenter__()
                assert await stream.get(10) == Listening((channel,), ())
            with pytest.raises(RuntimeError, match="entered or closed already"):
                async with stream:
                    raise AssertionError("the block is not entered")
            with pytest.raises(StreamClosed, match="closed"):
                await stream.get()
            never = n.listen(channel)
            await never.close()
            with pytest.raises(RuntimeError, match="entered or closed already"):
                async with never:
                    raise AssertionError("the block is not entered")
            assert n.channels() == {}

    run(main())


def test_errors(server: str, channel: str) -> None:
    """Guarantees 16, 17: of arguments at once, the others on entering; nothing has changed then."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            for kind_of_error, channels, options in (
                (ValueError, (), {}),
                (ValueError, ("",), {}),
                (TypeError, (1,), {}),
                (TypeError, (channel,), {"id": []}),
                (ValueError, (channel,), {"deliver": "some"}),
            ):
                with pytest.raises(kind_of_error):
                    n.listen(*channels, **options)  # type: ignore[arg-type]
            assert n.channels() == {}
            await n.subscribe("s", channel, print)
            async with n.listen(channel, id="t") as stream:
                assert stream.id == "t"
                before = n.channels()
                for id in ("s", "t", stream):
                    with pytest.raises(ValueError, match="registered already"):
                        async with n.listen("other", id=id if id != stream else "t"):
                            raise AssertionError("the block is not entered")
                assert n.channels() == before
            assert n.subscribers().keys() == {"s"}

    run(main())


def test_it_is_a_subscriber(server: str, channel: str, kind: str) -> None:
    """Guarantees 16, 17: it stands in `subscribers()`, and can be muted by itself."""

    async def main() -> None:
        async with AsyncNotifier(server) as n, n.listen(channel) as stream, n.listen(channel, id="named") as named:
            assert stream.id is stream
            assert stream in n.subscribers()
            assert named not in n.subscribers()
            assert "named" in n.subscribers()
            assert {stream, named, "named"} >= n.subscribers().keys()
            await asyncio.gather(stream.get(), named.get())
            await n.mute_subscriber(stream)
            await n.notify(channel, 1)
            assert await take(named, 1) == [1]
            with pytest.raises(TimeoutError):
                await stream.get(0.02)
            await n.unmute_subscriber(stream)
            assert reasons(await stream.get(10)) == {(channel, "muted")}
            await n.notify(channel, 2)
            assert await take(stream, 1) == [2]
            await n.unsubscribe(stream, channel)
            assert stream not in n.subscribers()

    run(main(), kind)


def test_iteration_ends_on_close(server: str, channel: str, kind: str) -> None:
    """Guarantee 17: for every reader, and what waits does not come any more."""

    async def main() -> None:
        async with AsyncNotifier(server) as n, n.listen(channel) as stream:
            assert await stream.get() == Listening((channel,), ())
            readers = [asyncio.ensure_future(read_all(stream)) for _ in range(3)]
            getting = asyncio.ensure_future(stream.get())
            await asyncio.sleep(0.02)
            await stream.close()
            await stream.close()
            assert await asyncio.gather(*readers) == [[], [], []]
            with pytest.raises(StreamClosed):
                await getting
            async with n.listen(channel) as muted:
                await muted.get()
                await n.mute_subscriber(muted)
                reading = asyncio.ensure_future(read_all(muted))
                await asyncio.sleep(0.02)
                await muted.close()
                assert await reading == []
            async with n.listen(channel) as full:
                await n.notify(channel, 1)
                await until_(lambda: n.status()["pending"] == 1)
                await full.close()
                assert await read_all(full) == []
                await until_(lambda: n.status()["pending"] == 0)

    run(main(), kind)


def test_iteration_ends_on_stop_and_goes_on_after_start(server: str, sender: Conn, channel: str, kind: str) -> None:
    """Guarantees 16, 17: it begins with the gap then."""

    async def main() -> None:
        n = AsyncNotifier(server)
        await n.start()
        async with n.listen(channel) as stream, n.listen(channel) as other:
            assert await stream.get() == await other.get() == Listening((channel,), ())
            reading = asyncio.ensure_future(read_all(stream))
            await asyncio.sleep(0.02)
            await n.stop()
            assert await asyncio.wait_for(reading, 5) == []
            assert await read_all(other) == []
            with pytest.raises(StreamClosed, match="stopped"):
                await stream.get(1)
            send(sender, channel, range(3))
            await n.start()
            send(sender, channel, range(3, 6))
            for s in (stream, other):
                assert reasons(await s.get(10)) == {(channel, "stopped")}
                assert await take(s, 3) == [3, 4, 5]
        await until_(lambda: n.active_channels() == [])
        await n.stop()

    run(main(), kind)


def test_iteration_ends_on_stop_where_nothing_is_heard(server: str, channel: str, kind: str) -> None:
    """Guarantees 16, 17: also of a stream that is muted, which has no mailbox."""

    async def main() -> None:
        n = AsyncNotifier(server)
        await n.start()
        names = [f"{channel}{number}" for number in range(4)]
        await n.add_channels(names[3])
        await n.mute_channels(names[3])
        async with contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(n.listen(name)) for name in names]
            readers = [asyncio.ensure_future(read_all(stream)) for stream in streams]
            await asyncio.sleep(0.02)
            await n.mute_channels(names[0])
            await n.mute_subscriber(streams[1])
            await n.unsubscribe(streams[2], names[2])
            await until_(lambda: readers[2].done())  # a stream without channels is closed
            assert not any(reader.done() for reader in (readers[0], readers[1], readers[3]))
            await n.stop()
            assert await asyncio.wait_for(asyncio.gather(*readers), 5) == [[()], [()], [()], []]

    run(main(), kind)


def test_entered_while_it_is_stopped(server: str, channel: str, kind: str) -> None:
    """Guarantee 17: it is recorded, and begins when the notifier is started."""

    async def main() -> None:
        n = AsyncNotifier(server)
        async with n.listen(channel) as stream:
            assert await read_all(stream) == []
            async with n:
                await n.notify(channel, 1)
                assert await stream.get(10) == Listening((channel,), ())
                assert await take(stream, 1) == [1]
        assert n.channels() == {}

    run(main(), kind)


def test_several_readers_get_each_event_once(server: str, sender: Conn, channel: str, kind: str) -> None:
    """Guarantees 16, 17."""
    total = 5000
    got: list[list[int]] = []

    async def reader(stream: AsyncStream) -> None:
        mine: list[int] = []
        got.append(mine)
        async for event in stream:
            mine.append(event.payload)  # type: ignore[union-attr]
            if len(mine) % 7 == 0:
                await asyncio.sleep(0)

    async def main() -> None:
        async with AsyncNotifier(server) as n, n.listen(channel) as stream:
            assert await stream.get() == Listening((channel,), ())
            readers = [asyncio.ensure_future(reader(stream)) for _ in range(10)]
            for number in range(0, total, 500):
                await asyncio.to_thread(send, sender, channel, range(number, number + 500))
            await until_(lambda: sum(map(len, got)) >= total)
            await stream.close()
            await asyncio.gather(*readers)
        assert all(mine == sorted(mine) for mine in got)
        assert sorted(number for mine in got for number in mine) == list(range(total))
        assert sum(map(bool, got)) > 1

    run(main(), kind)


def test_a_slow_reader_loses_only_its_own(server: str, sender: Conn, channel: str, kind: str) -> None:
    """Guarantees 9, 16, 17: the oldest beyond its mailbox, and a gap stands in their place."""

    async def main() -> None:
        async with AsyncNotifier(server, max_pending=100) as n, n.listen(channel) as slow, n.listen(channel) as fast:
            assert await slow.get() == await fast.get() == Listening((channel,), ())
            reading = asyncio.ensure_future(take(fast, 3000))
            for number in range(0, 3000, 50):
                await asyncio.to_thread(send, sender, channel, range(number, number + 50))
                await until_(lambda number=number: n.status()["received"] == number + 50)
                await until_(lambda: n.status()["pending"] <= 100)  # the fast one has taken its own
            assert await asyncio.wait_for(reading, 10) == list(range(3000))
            gap = await slow.get(10)
            assert reasons(gap) == {(channel, "overflow")}
            kept = await take(slow, n.status()["pending"])
            assert kept == list(range(3000 - len(kept), 3000))
            assert 50 <= len(kept) <= 100
            assert sum(g.dropped or 0 for g in gap.gaps) == 3000 - len(kept)  # type: ignore[union-attr]

    run(main(), kind)


def test_every_hole_stands_under_a_gap(
    server: str, sender: Conn, channel: str, kind: str, rng: random.Random
) -> None:
    """Guarantees 10, 16, 17: sessions killed under traffic."""
    ended = threading.Event()
    total = 0

    def traffic() -> None:
        nonlocal total
        while not ended.is_set():
            sender.execute("select pg_notify(%s, %s)", (channel, str(total)))
            total += 1

    async def main() -> None:
        numbers: list[int] = []
        holes: list[tuple[Gap, ...]] = []
        told: tuple[Gap, ...] = ()

        async def reader(stream: AsyncStream) -> None:
            nonlocal told
            assert await stream.get() == Listening((channel,), ())
            async for event in stream:
                if isinstance(event, Listening):
                    assert event.gaps
                    told += event.gaps
                    continue
                if numbers and event.payload != numbers[-1] + 1:
                    assert event.payload > numbers[-1]
                    holes.append(told)
                numbers.append(event.payload)
                told = ()

        async with AsyncNotifier(server, retry_delay=(0.001, 0.01)) as n, n.listen(channel) as stream:
            reading = asyncio.ensure_future(reader(stream))
            sending = threading.Thread(target=traffic)
            sending.start()
            try:
                for kills in range(15):
                    await until_(lambda kills=kills: n.status()["connected"] and n.status()["reconnects"] >= kills)
                    await asyncio.sleep(rng.random() * 0.03)
                    with psycopg.connect(server, autocommit=True) as other:
                        other.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
                await until_(lambda: n.status()["connected"] and n.status()["reconnects"] >= 15)
            finally:
                ended.set()
                await until_(lambda: not sending.is_alive())
            await n.notify(channel, total)
            await until_(lambda: numbers[-1:] == [total])
            await stream.close()
            await reading
            assert all(holes)
            print(f"{len(numbers)} of {total + 1}, {len(holes)} holes")

    run(main(), kind)


def test_a_thousand_streams_on_one_session(server: str, sender: Conn, channel: str, kind: str) -> None:
    """Guarantee 17: all hear all, and there is no thread and no task for them."""
    count = 1000

    async def main() -> None:
        before = asyncio.all_tasks()
        async with AsyncNotifier(server) as n:
            streams = [n.listen(channel, f"{channel}_{number % 10}") for number in range(count)]
            await asyncio.gather(*(stream.__aenter__() for stream in streams))
            assert len(n.subscribers()) == count
            found = sender.execute("select count(*) from pg_stat_activity where application_name = 'pgnotifier'")
            assert found.fetchone() == (1,)
            assert asyncio.all_tasks() == before
            send(sender, channel, range(20))
            for stream in streams:
                assert await stream.get(10) == Listening(stream.channels, ())
                assert await take(stream, 20) == list(range(20))
            assert threads() == IDLE
            for stream in streams:
                await stream.close()
            await until_(lambda: n.subscribers() == {} and n.active_channels() == [])

    run(main(), kind)


def test_a_forgotten_stream_is_collected(server: str, channel: str, kind: str) -> None:
    """Guarantees 16, 17: entered and never left, or never entered."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            stream = await n.listen(channel).__aenter__()
            await n.notify(channel, 1)
            await stream.get(10)
            refs = [weakref.ref(stream), weakref.ref(stream._stream), weakref.ref(n.listen(channel))]
            assert len(n.subscribers()) == 1
            del stream
            await until_(lambda: gc.collect() >= 0 and not any(ref() for ref in refs))
            await until_(lambda: n.subscribers() == {} and n.active_channels() == [])

    run(main(), kind)


def test_other_tasks_run_while_a_full_mailbox_is_read(server: str, sender: Conn, channel: str, kind: str) -> None:
    """Guarantee 17: after every 64 events at the latest."""
    total = 20_000
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        async with AsyncNotifier(server) as n, n.listen(channel) as stream:
            send(sender, channel, range(total))
            await until_(lambda: n.status()["pending"] == total)
            task = asyncio.ensure_future(other())
            seen = longest = last = 0
            async for event in stream:
                longest, last = (longest, last + 1) if turns == seen else (max(longest, last), 0)
                seen = turns
                if event[1] == total - 1:
                    break
            task.cancel()
            assert turns >= total // 64 - 1
            assert longest <= 64

    run(main(), kind)


# -- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readers", [1, 3])
def test_a_cancelled_get_loses_no_event(
    server: str, sender: Conn, channel: str, kind: str, rng: random.Random, readers: int
) -> None:
    """Guarantee 17: a thousand of them, at any moment, while notifications come."""
    ended = threading.Event()
    total = 0

    def traffic() -> None:
        nonlocal total
        while not ended.wait(rng.choice([0, 0, 0.001])):
            sender.execute("select pg_notify(%s, %s)", (channel, str(total)))
            total += 1

    async def main() -> None:
        got: list[int] = []
        cancelled = 0

        async def client(stream: AsyncStream, count: int) -> None:
            nonlocal cancelled
            for _ in range(count):
                limited = rng.random() < 0.3
                task = asyncio.ensure_future(stream.get(rng.random() * 0.002 if limited else None))
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.random() * 0.002)
                task.cancel()
                await asyncio.wait([task])
                if task.cancelled():
                    cancelled += 1
                elif task.exception() is None:
                    got.append(task.result().payload)  # type: ignore[union-attr]

        async with AsyncNotifier(server) as n, n.listen(channel) as stream:
            assert await stream.get() == Listening((channel,), ())
            sending = threading.Thread(target=traffic)
            sending.start()
            try:
                await asyncio.gather(*(client(stream, 1000 // readers) for _ in range(readers)))
            finally:
                ended.set()
                await until_(lambda: not sending.is_alive())
            await n.notify(channel, total)
            while total not in got:
                got += await take(stream, 1)
            assert sorted(got) == list(range(total + 1))
            assert readers > 1 or got == sorted(got)
            assert 0 < cancelled < 1000
            assert not stream._stream.bell.is_watched

    run(main(), kind)


async def nothing_is_listened_to(n: AsyncNotifier, sender: Conn, names: list[str]) -> bool:
    """Whether the session gets nothing that is notified on these channels."""
    before = n.status()["received"]
    for name in names:
        sender.execute("select pg_notify(%s, 'unheard')", (name,))
    await n.notify(n.SYSCHAN, "the last")
    await until_(lambda: n.status()["received"] > before)
    return n.status()["received"] == before + 1


@pytest.mark.parametrize("given_up", [given_up_by_anyio, cancelled_twice])
def test_clients_in_waves_leave_nothing(
    server: str, sender: Conn, rng: random.Random, kind: str, given_up: Any
) -> None:
    """Guarantee 17: 300, cancelled whenever; no subscription, channel, LISTEN, task or thread. PGNOTIFIER_LONG=1: 20
    times."""
    names = [f"wave_{number}" for number in range(7)]
    heard = 0

    async def client(n: AsyncNotifier, number: int) -> None:
        nonlocal heard
        async with n.listen(names[number % 7], "all", id=number if number % 3 else None) as stream:
            async for _ in stream:
                heard += 1
                await asyncio.sleep(rng.choice([0, 0.001]))

    async def main() -> None:
        before = asyncio.all_tasks()
        async with AsyncNotifier(server) as n:
            for wave in range(12):
                calls = [given_up(client(n, wave * 25 + number), rng.random() * 0.2) for number in range(25)]
                traffic = asyncio.to_thread(send, sender, "all", range(50))
                await asyncio.gather(*calls, traffic)
            await until_(lambda: n.subscribers() == {} and n.active_channels() == [])
            assert n.channels() == {}
            assert await nothing_is_listened_to(n, sender, [*names, "all"])
            assert asyncio.all_tasks() == before
            await until_(lambda: threads() == IDLE)
            async with n.listen("all") as stream:  # the next change sees what is pending
                assert n.active_channels() == ["all"]
                assert await stream.get(10) == Listening(("all",), ())
        await until_(lambda: threads() == [])

    for _ in range(RUNS):
        heard = 0
        run(main(), kind)
        assert heard > 100


@pytest.mark.parametrize("given_up", [given_up_by_anyio, cancelled_twice])
def test_a_stream_that_is_cancelled_while_it_is_entered(
    server: str, sender: Conn, rng: random.Random, kind: str, given_up: Any
) -> None:
    """Guarantee 17: before, while and after the server is asked; beside subscribers that stay."""

    async def enter(n: AsyncNotifier, name: str) -> None:
        async with n.listen(name):
            pass

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            await n.subscribe("stays", "kept", print)
            await n.mute_channels("kept")
            await n.add_channels("added")
            before = n.channels()
            for _ in range(100):
                names = [rng.choice(["kept", "added", "fresh"]) for _ in range(3)]
                await asyncio.gather(*(given_up(enter(n, name), rng.random() * 0.003) for name in names))
            await until_(lambda: n.subscribers().keys() == {"stays"} and n.active_channels() == [])
            assert n.channels() == before
            assert await nothing_is_listened_to(n, sender, ["kept", "added", "fresh"])
            await until_(lambda: threads() == IDLE)

    run(main(), kind)


def test_closed_by_another_task_while_it_is_entered(server: str, channel: str, kind: str) -> None:
    """Guarantee 17: entering raises, and nothing is left."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            for turns in range(5):
                stream = n.listen(channel)
                entering = asyncio.ensure_future(stream.__aenter__())
                await asyncio.sleep(0)
                for _ in range(turns):
                    await asyncio.sleep(0.0005)
                await stream.close()
                with pytest.raises(StreamClosed):  # from entering, or it was fast
                    await (await entering).get()
                await until_(lambda: n.subscribers() == {} and n.active_channels() == [])

    run(main(), kind)


def test_leaving_in_a_cancelled_scope(server: str, channel: str, kind: str) -> None:
    """Guarantee 17: it awaits nothing, so nothing of it can be cancelled."""

    async def main() -> None:
        async with AsyncNotifier(server) as n:
            with anyio.move_on_after(0.05) as scope:
                async with n.listen(channel) as stream:
                    try:
                        await stream.get()
                        await stream.get()
                    finally:
                        await stream.close()
            assert scope.cancelled_caught
            assert n.subscribers() == {}
            await until_(lambda: n.active_channels() == [])

    run(main(), kind)


def test_its_event_loop_is_closed_while_it_is_open(server: str, channel: str) -> None:
    """Guarantee 17: a reader that was never cancelled hinders nothing; another loop may read on."""
    n = AsyncNotifier(server)
    streams: list[AsyncStream] = []
    waiting: list[Any] = []

    async def first() -> None:
        await n.start()
        streams.append(await n.listen(channel).__aenter__())
        await streams[0].get()
        waiting.append(asyncio.ensure_future(streams[0].get()))
        await asyncio.sleep(0.01)

    async def second() -> None:
        await n.notify(channel, 1)
        assert await take(streams[0], 1) == [1]
        await streams[0].close()
        await n.stop()

    for main in (first, second):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    waiting.pop()._log_destroy_pending = False
    until(lambda: threads() == [])
