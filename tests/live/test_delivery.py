"""Guarantees 3, 4, 5, 6, 8, 11, 12, 13 on a real server."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import InvalidChannel, Notifier, PayloadTooLong, UnknownChannel, UnknownSubscriber
from pgnotifier.connection import Session
from pgnotifier.connection.waiting import CancelToken

Conn = psycopg.Connection[Any]


@pytest.mark.parametrize(
    "name", ['a"b', "a;b", "$$", "%s", "a b", "UPPER", "é" * 31, "';--", 'x" ; select 1 ; listen "y']
)
def test_any_name_is_heard(server: str, sender: Conn, name: str) -> None:
    """Guarantee 12: names are quoted exactly as given."""
    got: list[Any] = []
    with Notifier(server) as n:
        n.subscribe(1, name, lambda *a: got.append(a))
        sender.execute("select pg_notify(%s, %s)", (name, '{"a": null}'))
        until(lambda: got)
        assert got == [(1, name, {"a": None}, sender.info.backend_pid)]
        assert n.channels()[name]["active"]
        n.unsubscribe(1, name)
        assert n.active_channels() == []


def test_a_notification_waits_for_no_book_keeping(
    server: str, sender: Conn, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 15: it is handed over in the pass of the event loop that finds the socket readable."""
    checks: list[float] = []
    check = Session.check
    monkeypatch.setattr(Session, "check", lambda self, heard: (checks.append(heard), check(self, heard))[1])
    got: list[int] = []
    with Notifier(server, heartbeat=60) as n:
        n.subscribe(1, channel, lambda *a: got.append(a[2]))
        until(lambda: n._supervisor.shared.life.loop is not None and checks)
        before = len(checks)
        for number in range(100):
            sender.execute("select pg_notify(%s, %s)", (channel, str(number)))
            until(lambda number=number: number in got)
        assert got == list(range(100))
        assert len(checks) - before <= 2  # the task may still be on its way to its first wait


def test_a_burst_is_read_in_large_batches(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 15: libpq reads 16 kB at a time; a read goes on while much comes, up to about 1,000 notifications."""
    session = Session(server, None, CancelToken())
    try:
        session.listen([channel])
        sender.execute("select count(pg_notify(%s, i::text)) from generate_series(1, 3000) i", (channel,))
        until(lambda: (session.read(), sum(len(batch.notifications) for batch in session.backlog) == 3000)[1])
        assert [n.payload for batch in session.backlog for n in batch.notifications] == [*map(str, range(1, 3001))]
        assert 1000 <= max(len(batch.notifications) for batch in session.backlog) < 2000
    finally:
        session.close()


def test_heard_as_soon_as_subscribe_returned(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 5, a thousand times."""
    got: list[Any] = []
    with Notifier(server) as n:
        for i in range(1000):
            name = f"{channel}_{i % 7}"
            n.subscribe(i, name, lambda *a: got.append(a[2]))
            sender.execute("select pg_notify(%s, %s)", (name, str(i)))
            until(lambda i=i: i in got)
            n.unsubscribe(i, name)
            got.clear()


def test_changes_under_traffic_lose_nothing(server: str, channel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 5: a thousand random changes from four threads, one writer at full speed."""
    changes: list[int] = []
    listen = Session.listen

    def counted(self: Session, *args: Any) -> None:
        listen(self, *args)
        changes.append(1)

    monkeypatch.setattr(Session, "listen", counted)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    got: list[int] = []
    with Notifier(server) as n:
        n.subscribe("keep", channel, lambda *a: got.append(a[2]))
        n.subscribe("idle", "idle", print)
        done = threading.Event()
        sent = 0

        def write() -> None:
            nonlocal sent
            with psycopg.connect(server, autocommit=True) as conn:
                while not done.is_set():
                    conn.execute(
                        "select pg_notify(%s, i::text) from generate_series(%s::int, %s::int) i",
                        (channel, sent, sent + 99),
                    )
                    sent += 100

        def change(number: int) -> None:
            rng = random.Random(seed + number)
            end = time.monotonic() + 20  # a loaded machine makes fewer changes, not a longer test
            for _ in range(250):
                if time.monotonic() > end:
                    break
                other, who = f"{channel}_{rng.randrange(5)}", rng.randrange(3)
                call = rng.randrange(6)
                if call == 0:
                    n.unsubscribe(who, other)
                elif call == 1:
                    n.remove_channels(other)
                elif call == 2:
                    n.add_channels(other)
                elif call == 3:
                    n.mute_channels("idle")
                    n.unmute_channels("idle")
                else:
                    n.subscribe(who, other, lambda *a: None)

        writer = threading.Thread(target=write)
        writer.start()
        changers = [threading.Thread(target=change, args=(k,)) for k in range(4)]
        for t in changers:
            t.start()
        for t in changers:
            t.join()
        done.set()
        writer.join()
        until(lambda: len(got) >= sent, 30)
        print(f"{sent} sent, {len(got)} received, {len(changes)} changes, {n.status()['restarts']} restarts")
        assert got == list(range(sent))
        assert len(changes) > 100
        assert n.status()["restarts"] > 10  # each serves all threads that wait


def test_a_failing_callback_harms_nobody(server: str, sender: Conn, channel: str) -> None:
    """Guarantees 6 and 8."""
    got: list[Any] = []
    events: list[Any] = []

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    with Notifier(server) as n:
        n.subscribe("watch", Notifier.SYSCHAN, lambda *a: events.append(a))
        n.subscribe("bad", channel, fail)
        n.subscribe("good", channel, lambda *a: got.append(a[2]))
        sender.execute("select pg_notify(%s, '1')", (channel,))
        sender.execute("select pg_notify(%s, '2')", (channel,))
        until(lambda: got == [1, 2] and len(events) == 2)
        assert events[0][2]["event"] == "callback_failed"
        assert events[0][3] == 0
        assert n.status()["failed"] == 2
    assert events[-1][2] == {"event": "stopped"}


def test_a_failing_decoder_is_reported(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 7."""
    got: list[Any] = []
    events: list[Any] = []
    with Notifier(server, decode=int) as n:
        n.subscribe("watch", Notifier.SYSCHAN, lambda *a: events.append(a[2]))
        n.subscribe(1, channel, lambda *a: got.append(a[2]))
        sender.execute("select pg_notify(%s, 'x')", (channel,))
        sender.execute("select pg_notify(%s, '2')", (channel,))
        until(lambda: got == [2] and events)
        assert events[0]["event"] == "decode_failed"
        assert events[0]["payload"] == "x"


def test_mute_and_unmute(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 3."""
    got: list[Any] = []
    with Notifier(server) as n:
        n.subscribe("a", channel, lambda *a: got.append(a[0]))
        n.subscribe("b", channel, lambda *a: got.append(a[0]))
        n.mute_subscriber("a")
        sender.execute("select pg_notify(%s, '')", (channel,))
        until(lambda: got == ["b"])
        assert n.muted_subscribers() == {channel: ["a"]}
        n.mute_channels()
        assert n.active_channels() == []
        assert n.muted_channels() == [channel]
        n.unmute_channels()
        n.unmute_subscriber("a")
        sender.execute("select pg_notify(%s, '')", (channel,))
        until(lambda: len(got) == 3)
        assert n.subscribers()["a"]["channels"][channel]["sub_mute"] is False


def test_refused_calls_change_nothing(server: str) -> None:
    """Guarantee 12."""
    with Notifier(server) as n:
        n.subscribe(1, "a", print)
        before = n.channels(), n.subscribers(), n._supervisor.shared.registry
        calls: list[tuple[type[BaseException], Any]] = [
            (InvalidChannel, lambda: n.subscribe(1, "", print)),
            (InvalidChannel, lambda: n.add_channels(["ok", "x" * 64])),
            (InvalidChannel, lambda: n.add_channels("a\0b")),
            (InvalidChannel, lambda: n.add_channels(["ok", "\ud800"])),
            (TypeError, lambda: n.add_channels(["ok", 7])),  # type: ignore[list-item]
            (TypeError, lambda: n.add_channels(7)),  # type: ignore[arg-type]
            (TypeError, lambda: n.subscribe([], "a", print)),  # type: ignore[arg-type]
            (TypeError, lambda: n.subscribe(1, "a", None)),  # type: ignore[arg-type]
            (UnknownChannel, lambda: n.mute_channels(["a", "zz"])),
            (UnknownSubscriber, lambda: n.mute_subscriber(2)),
            (UnknownChannel, lambda: n.mute_subscriber(1, ["a", "zz"])),
            (PayloadTooLong, lambda: n.notify("a", "x" * 8000)),
            (TypeError, lambda: n.notify("a", object())),
        ]
        for error, call in calls:
            with pytest.raises(error):
                call()
        assert (n.channels(), n.subscribers(), n._supervisor.shared.registry) == before
        assert n._supervisor.shared.registry is before[2]


def test_a_name_the_server_refuses(server: str) -> None:
    """Guarantee 5: LATIN1 cannot hold the euro sign; what stands is kept."""
    name = "latin_" + str(time.monotonic_ns())
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"create database {name} encoding 'LATIN1' template template0 locale 'C'")
    got: list[Any] = []
    with Notifier(psycopg.conninfo.make_conninfo(server, dbname=name)) as n:
        n.subscribe(1, "é", lambda *a: got.append(a[2]))
        with pytest.raises(psycopg.Error):
            n.subscribe(2, "€", print)
        assert list(n.channels()) == ["é"]
        assert n.subscribers().keys() == {1}
        n.notify("é", "ü")
        until(lambda: got == ["ü"])


def test_every_method_from_inside_a_callback(server: str, channel: str) -> None:
    """Guarantee 5: none deadlocks, stop() included."""
    done = threading.Event()
    with Notifier(server) as n:

        def everything(id: Any, name: str, payload: Any, pid: int) -> None:
            n.add_channels("x")
            n.subscribe("y", "y", print)
            n.mute_channels("y")
            n.unmute_channels("y")
            n.mute_subscriber("y")
            n.unmute_subscriber("y")
            n.unsubscribe("y", "y")
            n.remove_channels(["x", "y"])
            assert n.is_running()
            n.restart()
            n.stop()
            done.set()

        n.subscribe(1, channel, everything)
        n.notify(channel, 1)
        assert done.wait(10)
        assert n.wait(10)
        assert not n.is_running()


def test_stop_and_start_again(server: str, channel: str) -> None:
    """Guarantee 11."""
    got: list[Any] = []
    n = Notifier(server)
    n.subscribe(1, channel, lambda *a: got.append(a[2]))
    n.stop()
    n.stop()
    assert not n.is_running()
    n.subscribe(2, channel, lambda *a: got.append(a[2]))
    assert n.active_channels() == []
    n.start()
    n.notify(channel, [1])
    until(lambda: got == [[1], [1]])
    n.stop()


def test_no_server_leaves_nothing() -> None:
    """Guarantee 2."""
    before = threading.active_count()
    with pytest.raises(psycopg.OperationalError):
        Notifier({"host": "127.0.0.1", "port": 1})
    assert threading.active_count() == before
