"""What a test may have the server in memory do, and what the code under test meets then."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import psycopg
import pytest

import pgnotifier
from conftest import until
from pgnotifier import CannotListen, Gap, InvalidChannel, Notifier, PayloadTooLong, UnknownChannel
from pgnotifier.connection import CancelToken, Session
from pgnotifier.testing import MemoryNotifier, MemoryServer


class Log(list[Any]):
    def heard(self, id: Any, channel: str, payload: Any, pid: int) -> None:
        self.append(payload)

    def told(self, id: Any, channel: str, gap: Gap | None) -> None:
        self.append(gap)


@pytest.fixture
def memory() -> Iterator[MemoryServer]:
    with MemoryServer() as memory:
        yield memory


@pytest.fixture
def n(memory: MemoryServer) -> Notifier:
    return memory.Notifier()


@pytest.fixture
def log(n: Notifier) -> Log:
    """Of a subscription to `a`, after its first telling."""
    log = Log()
    n.subscribe("log", "a", log.heard, on_listen=log.told)
    until(lambda: log == [None])
    log.clear()
    return log


@pytest.fixture
def events(n: Notifier) -> Log:
    events = Log()
    n.subscribe("events", n.SYSCHAN, events.heard)
    return events


# -- sending ----------------------------------------------------------------------------------------------------


def test_notifiers_of_one_server_hear_each_other(memory: MemoryServer) -> None:
    one, two, apart = memory.Notifier(), MemoryNotifier("postgresql://x/y", server=memory), MemoryNotifier()
    got = Log()
    for n in (one, two, apart):
        n.subscribe(1, "a", got.heard)
    one.notify("a", {"x": None})
    memory.settle()
    assert got == [{"x": None}] * 2
    assert apart.server is not memory
    assert sorted(memory.listening().values()) == [["PGNOTIFIER", "a"]] * 2
    apart.stop()


def test_notify_as_another_process(memory: MemoryServer, n: Any) -> None:
    """Guarantee 4: with its pid; 0 on SYSCHAN makes an event."""
    got: list[Any] = []
    n.subscribe(1, "a", lambda *a: got.append(a))
    n.subscribe(1, n.SYSCHAN, lambda *a: got.append(a))
    memory.notify("a", [1], pid=4711)
    memory.notify("a")
    memory.notify(n.SYSCHAN, {"event": "overflow", "dropped": 3}, pid=0)
    n.settle()
    assert got[0] == (1, "a", [1], 4711)
    assert got[1][:3] == (1, "a", "")
    assert got[1][3] > 0
    assert got[2] == (1, n.SYSCHAN, {"event": "overflow", "dropped": 3}, 0)


def test_what_was_sent_is_listed(memory: MemoryServer, n: Notifier) -> None:
    n.notify("nobody", {"id": 42})
    memory.notify("nobody", "text", pid=7)
    assert [(s.channel, s.payload) for s in memory.sent] == [("nobody", {"id": 42}), ("nobody", "text")]
    assert memory.sent[0].text == '{"id":42}'
    assert memory.sent[1] == ("nobody", "text", 7)
    memory.sent.clear()
    assert memory.sent == []


def test_equal_ones_of_a_transaction_are_folded(memory: MemoryServer, n: Any, log: Log) -> None:
    """Guarantee 4."""
    with memory.transaction() as transaction:
        for payload in ("x", "y", "x", "y", "z"):
            transaction.notify("a", payload)
        n.settle()
        assert log == []  # not committed
    n.settle()
    assert log == ["x", "y", "z"]


def test_a_transaction_that_fails_sends_nothing(memory: MemoryServer, n: Any, log: Log) -> None:
    def fail() -> None:
        with memory.transaction() as transaction:
            transaction.notify("a", 1)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    n.settle()
    assert log == memory.sent == []


@pytest.mark.parametrize("who", ["server", "notifier"])
def test_limits(memory: MemoryServer, n: Notifier, who: str) -> None:
    """Guarantees 12 and 13: PostgreSQL's."""
    notify = memory.notify if who == "server" else n.notify
    notify("é" * 31, "x" * 7999)
    for error, channel, payload in (
        (PayloadTooLong, "a", "x" * 8000),
        (PayloadTooLong, "a", "é" * 4000),
        (InvalidChannel, "é" * 32, ""),
        (InvalidChannel, "", ""),
        (ValueError, "a", "\0"),
        (TypeError, "a", object()),
    ):
        with pytest.raises(error):
            notify(channel, payload)
    assert len(memory.sent) == 1


# -- settle -----------------------------------------------------------------------------------------------------


def test_settle_waits_for_callbacks_and_for_what_they_send(memory: MemoryServer) -> None:
    """A chain of fifty through three notifiers, each of whose callbacks takes its time."""
    notifiers = [memory.Notifier(workers=2) for _ in range(3)]
    got: list[int] = []

    def step(id: Any, channel: str, payload: int, pid: int) -> None:
        time.sleep(0.002)
        got.append(payload)
        if payload < 50:
            notifiers[payload % 3].notify("chain", payload + 1)

    notifiers[0].subscribe("step", "chain", step)
    notifiers[1].notify("chain", 1)
    memory.settle()
    assert got == list(range(1, 51))
    assert notifiers[0].status()["pending"] == 0


def test_settle_a_thousand_times(memory: MemoryServer, n: Any) -> None:
    """It is never too early, and nothing of it shows in the counters."""
    got: list[Any] = []

    def first(id: Any, channel: str, payload: Any, pid: int) -> None:
        n.subscribe("second", "b", lambda *a: got.append(a[2]), on_listen=lambda *a: got.append("told"))
        raise RuntimeError("on purpose")

    n.subscribe("first", "a", first)
    n.subscribe("events", n.SYSCHAN, lambda *a: got.append(a[2]["event"]))
    for i in range(1000):
        n.notify("a", i)
        n.settle()
        assert sorted(got) == ["callback_failed", "told"], i
        n.unsubscribe("second", "b")
        got.clear()
    assert n.status()["received"] == 1000
    assert memory.commits == 1000


def test_settle_gives_up(memory: MemoryServer, n: Any) -> None:
    release = threading.Event()
    n.subscribe(1, "a", lambda *a: release.wait(10))
    n.notify("a", 1)
    n.notify("a", 2)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"not settled within 0\.1 seconds: [12] notifications wait"):
        n.settle(0.1)
    assert time.monotonic() - began < 2
    release.set()
    n.settle()


def test_settle_of_what_is_stopped_muted_or_without_subscribers(memory: MemoryServer, n: Any, log: Log) -> None:
    n.mute_channels()
    memory.notify("a", 1)
    memory.settle()
    n.stop()
    memory.notify("a", 2)
    memory.settle()
    MemoryServer().settle()
    assert log == []


def test_settle_inside_a_callback(memory: MemoryServer, n: Any, events: Log) -> None:
    n.subscribe(1, "a", lambda *a: n.settle())
    n.notify("a")
    n.settle()
    assert "RuntimeError: settle() in a callback" in events[0]["error"]


def test_settle_with_coroutines(memory: MemoryServer, n: Any) -> None:
    """Guarantee 8: in another thread than the event loop's; on it, the error says so."""
    got: list[Any] = []

    async def heard(id: Any, channel: str, payload: Any, pid: int) -> None:
        await asyncio.sleep(0.001)
        got.append(payload)

    async def main() -> None:
        n.subscribe(1, "a", heard)
        for i in range(20):
            n.notify("a", i)
        await asyncio.to_thread(n.settle)
        assert got == list(range(20))
        n.notify("a", 20)
        with pytest.raises(
            (TimeoutError, RuntimeError), match="to_thread"
        ):  # as soon as it has arrived: RuntimeError
            n.settle(0.1)
        await asyncio.to_thread(n.settle)

    asyncio.run(main())
    assert got == list(range(21))


# -- losing the connection --------------------------------------------------------------------------------------


def test_lose_and_restore(memory: MemoryServer, n: Any, log: Log, events: Log) -> None:
    """Guarantees 6 and 10: the gap covers what is missed, the events come, and no time is spent."""
    began, before = time.monotonic(), datetime.now(timezone.utc)
    for cycle in range(1, 21):
        n.notify("a", 1)
        n.settle()
        n.lose_connection("the cable was cut")
        assert n.is_running()
        assert not n.status()["connected"]
        assert n.active_channels() == []
        n.notify("a", 2)
        n.settle()
        n.restore_connection()
        assert n.status()["connected"]
        assert n.status()["reconnects"] == cycle
        n.notify("a", 3)
        n.settle()
        one, gap, three = log
        assert (one, three) == (1, 3)
        assert (gap.channel, gap.reason, gap.dropped) == ("a", "connection", None)
        assert "the cable was cut" in gap.error
        assert gap.since < gap.until <= datetime.now(timezone.utc)
        assert gap.until > before
        lost, back = events
        assert lost["event"] == "disconnected"
        assert "the cable was cut" in lost["error"]
        assert (back["event"], back["attempts"]) == ("reconnected", 1)
        log.clear()
        events.clear()
    assert time.monotonic() - began < 10


def test_connection_lost_as_a_block(memory: MemoryServer, n: Any, log: Log) -> None:
    with n.connection_lost():
        n.subscribe("late", "b", log.heard, on_listen=log.told)  # takes effect with the connection
        memory.notify("b", "missed")
    assert n.active_channels() == ["a", "b"]
    n.settle()
    assert {gap if gap is None else gap.reason for gap in log} == {"connection", None}


def test_lost_while_stopped(memory: MemoryServer, n: Any, log: Log) -> None:
    """Guarantees 2 and 11: start() raises, and leaves it stopped."""
    n.lose_connection()
    n.stop()
    with pytest.raises(psycopg.OperationalError, match="terminating connection"):
        n.start()
    assert not n.is_running()
    n.restore_connection()  # nothing to wait for
    n.start()
    n.settle()
    assert [gap.reason for gap in log] == ["connection"]


def test_stop_while_lost(memory: MemoryServer, n: Any) -> None:
    """Guarantee 11: at once, though the listener waits for the connection."""
    n.lose_connection()
    began = time.monotonic()
    n.stop()
    assert time.monotonic() - began < 1


def test_the_server_stops_and_starts(memory: MemoryServer, n: Any, log: Log) -> None:
    """Guarantees 2, 10 and 13: sending and constructing fail meanwhile."""
    other = memory.Notifier()
    n.notify("a", 1)
    n.settle()
    memory.stop()
    assert not n.status()["connected"]
    assert not other.status()["connected"]
    for fails in (lambda: n.notify("a"), lambda: memory.notify("a"), memory.Notifier):
        with pytest.raises(psycopg.OperationalError, match="the server in memory is stopped"):
            fails()
    memory.start()
    n.notify("a", 2)
    memory.settle()
    assert log[0] == 1
    assert log[1].reason == "connection"
    assert log[2:] == [2]
    assert other.status()["reconnects"] == 1


def test_a_frozen_server(memory: MemoryServer) -> None:
    """Guarantee 10: noticed by the heartbeat; what thaws in time is only late."""
    log = Log()
    n = memory.Notifier(heartbeat=0.3)
    n.subscribe("log", "a", log.heard, on_listen=log.told)
    memory.freeze()
    memory.notify("a", "late")
    with pytest.raises(TimeoutError, match="frozen"):
        n.settle(0.02)
    memory.thaw()
    n.settle()
    assert log == [None, "late"]
    memory.freeze()
    until(lambda: not n.status()["connected"], 5)
    memory.notify("a", "missed")
    memory.thaw()
    until(lambda: n.status()["connected"])
    n.settle()
    assert log[2].reason == "connection"
    assert "no answer" in log[2].error
    assert len(log) == 3


def test_a_change_while_frozen_returns(memory: MemoryServer) -> None:
    """Guarantee 10: a change that is not answered within the heartbeat is a lost connection."""
    log = Log()
    n = memory.Notifier(heartbeat=0.2)
    n.subscribe("log", "b", log.heard)
    memory.freeze()
    memory.notify("b", "missed: it has not left the server")
    began = time.monotonic()
    n.subscribe(1, "a", print)
    assert 0.1 < time.monotonic() - began < 3
    memory.thaw()
    until(lambda: n.active_channels() == ["a", "b"])
    n.settle()
    assert log == []


def test_what_thaws_needs_no_push(memory: MemoryServer) -> None:
    log = Log()
    n = memory.Notifier(heartbeat=None)
    n.subscribe("log", "a", log.heard)
    memory.freeze()
    memory.notify("a", 1)
    memory.thaw()
    until(lambda: log == [1])


# -- refusals and gaps ------------------------------------------------------------------------------------------


def test_refused_names(memory: MemoryServer, n: Any, log: Log, events: Log) -> None:
    """Guarantee 5: the call raises and changes nothing; met while reconnecting it is reported."""
    memory.refuse(["b", "c"])
    with pytest.raises(psycopg.DataError, match="'b'"):
        n.subscribe(1, "b", print)
    with pytest.raises(psycopg.DataError):
        n.notify("b")
    with pytest.raises(psycopg.DataError):
        memory.notify("b")
    assert n.channels().keys() == {"a", n.SYSCHAN}
    memory.accept("b")
    n.subscribe(1, "b", print)
    memory.refuse("b")
    with n.connection_lost():
        pass
    n.settle()
    assert n.active_channels() == ["a"]
    assert [(e["event"], e.get("channel")) for e in events] == [
        ("disconnected", None),
        ("channel_refused", "b"),
        ("reconnected", None),
    ]
    with pytest.raises(psycopg.DataError, match="'b'"):
        n.restart()
    memory.accept()
    n.restart()
    assert n.active_channels() == ["a", "b"]
    memory.refuse("b")
    with n.connection_lost():
        pass
    assert n.active_channels() == ["a"]
    memory.accept()
    with n.connection_lost():
        pass
    assert n.active_channels() == ["a", "b"]


def test_raise_gap(memory: MemoryServer, n: Any, log: Log, events: Log) -> None:
    """Guarantee 10: in the subscriber's stream, to those who hear the channel, and nothing else."""
    n.subscribe("other", "b", log.heard, on_listen=log.told)
    n.subscribe("without", "a", lambda *a: None)
    n.settle()
    log.clear()
    before, since = n.status(), datetime(2026, 1, 1, tzinfo=timezone.utc)
    n.notify("a", 1)
    n.raise_gap("a", "overflow", dropped=4, since=since)
    n.notify("a", 2)
    n.settle()
    one, gap, two = log
    assert (one, two) == (1, 2)
    assert gap == Gap("a", "overflow", since, gap.until, 4, None)
    log.clear()
    n.raise_gap(error="x")
    n.settle()
    assert sorted((g.channel, g.reason, g.error) for g in log) == [("a", "connection", "x"), ("b", "connection", "x")]
    assert events == []
    assert {**n.status(), "received": 0, "delivered": 0} == {**before, "received": 0, "delivered": 0}


def test_raise_gap_for_nobody(memory: MemoryServer, n: Any, log: Log) -> None:
    n.subscribe("without", "b", lambda *a: None)
    with pytest.raises(UnknownChannel, match="'c'"):
        n.raise_gap(["a", "c"])
    with pytest.raises(ValueError, match="no unmuted subscriber"):
        n.raise_gap("b")
    with pytest.raises(ValueError, match="'overflow'"):
        n.raise_gap("a", "nonsense")
    with n.connection_lost(), pytest.raises(ValueError, match="no unmuted subscriber"):
        n.raise_gap("a")
    n.settle()
    log.clear()
    n.mute_subscriber("log")
    with pytest.raises(ValueError, match="no unmuted subscriber"):
        n.raise_gap()
    n.settle()
    assert log == []


# -- the class, and life ----------------------------------------------------------------------------------------


def test_it_stands_in_by_the_class(memory: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the code under test does with the name `Notifier`: constructing, SYSCHAN, isinstance."""
    monkeypatch.setattr(pgnotifier, "Notifier", memory.Notifier)
    with pgnotifier.Notifier({"host": "nowhere.invalid", "password": "x"}, workers=2, retry_delay=(5, 60)) as n:
        assert isinstance(n, pgnotifier.Notifier)
        assert isinstance(n, Notifier)
        assert pgnotifier.Notifier.SYSCHAN == "PGNOTIFIER"
        assert memory.notifiers() == [n]
        assert memory.Notifier is memory.Notifier
    assert memory.notifiers() == [n]
    assert not n.is_running()


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, {"dbconf": 7}),
        (TypeError, {"decode": None}),
        (ValueError, {"workers": 0}),
        (ValueError, {"max_pending": -1}),
        (ValueError, {"heartbeat": 0}),
        (ValueError, {"retry_delay": (2, 1)}),
    ],
)
def test_bad_arguments_are_refused(memory: MemoryServer, error: type[Exception], arguments: dict[str, Any]) -> None:
    """Guarantee 12: as by the real one."""
    texts = []
    for kind in (Notifier, memory.Notifier):
        with pytest.raises(error) as caught:
            kind(**arguments)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert memory.notifiers() == []


def test_dbconf_is_not_asked(memory: MemoryServer) -> None:
    def secret() -> str:
        raise AssertionError("asked")

    memory.Notifier(secret)


def test_closing_the_server_stops_its_notifiers(memory: MemoryServer) -> None:
    notifiers = [memory.Notifier() for _ in range(3)]
    memory.close()
    assert not any(n.is_running() for n in notifiers)
    with pytest.raises(psycopg.OperationalError):
        notifiers[0].start()


def test_nothing_is_left_open(memory: MemoryServer) -> None:
    with memory.Notifier() as n:
        n.notify("a")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        n.start()
        n.notify("a")
        n.lose_connection()
        n.restore_connection()
        n.stop()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert memory._connections == memory._waiting == {}


def test_an_unknown_statement_fails(memory: MemoryServer) -> None:
    """The library must not come to ask for more than the server in memory knows."""
    token = CancelToken()
    session = Session(lambda: memory, None, token)  # type: ignore[arg-type, return-value]
    with pytest.raises(NotImplementedError, match="SELECT 1"):
        session._ask(b"SELECT 1")
    session.close()
    token.close()


def test_an_unlisten_from_elsewhere(memory: MemoryServer) -> None:
    """Guarantee 10: the heartbeat sees that the session listens no longer."""
    log = Log()
    n = memory.Notifier(heartbeat=0.2)
    n.subscribe("log", "a", log.heard, on_listen=log.told)
    with memory.lock:
        memory._connections[n.status()["pid"]].channels.clear()
    until(lambda: n.status()["reconnects"] == 1)
    n.settle()
    assert log[0] is None
    assert "listens to 0 of 2 channels" in log[1].error
    assert CannotListen.__name__ in log[1].error


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_a_server_of_its_own(memory: MemoryServer, n: Any, log: Log) -> None:
    """Guarantee 11: stopped in the child, also where another thread had the server's lock; the parent goes on."""
    done = threading.Event()
    far = [conn._far.fileno() for conn in memory._connections.values()]  # closed in the child

    def send() -> None:
        while not done.is_set():
            memory.notify("elsewhere")

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for i in range(20):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    signal.alarm(20)
                    ok = not n.is_running() and not [fd for fd in far if os.path.exists(f"/proc/self/fd/{fd}")]
                    heard: list[Any] = []
                    n.subscribe("child", "a", lambda *a: heard.append(a[2]))  # noqa: B023
                    n.start()
                    n.notify("a", "child")
                    n.settle()
                    ok = ok and heard == ["child"]
                    with n.connection_lost():
                        pass
                    n.stop()
                    code = 0 if ok else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, i
            n.notify("a", i)
    finally:
        done.set()
        sender.join()
    n.settle()
    assert log == list(range(20))
    assert n.status()["reconnects"] == 0


def test_a_notifier_made_stopped() -> None:
    """Guarantee 2: `autostart=False`."""
    n = MemoryNotifier(autostart=False)
    heard: list[object] = []
    n.subscribe(1, "a", lambda *a: heard.append(a[2]))
    n.notify("a", "lost")
    n.settle()
    with n:
        n.notify("a", "heard")
        n.settle()
    assert heard == ["heard"]
