"""Guarantee 10: on_listen and Gap on a real server, one cause at a time and together. Faults are in tests/faults."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Gap, Notifier
from pgnotifier.connection import Session

Conn = psycopg.Connection[Any]


class Log(list[Any]):
    """What one subscriber was called with, in order."""

    def heard(self, id: Any, channel: str, payload: Any, pid: int) -> None:
        self.append(payload)

    def told(self, id: Any, channel: str, gap: Gap | None) -> None:
        self.append(gap if gap is None else (channel, gap.reason))
        if gap is not None:
            self.last = gap


def now() -> datetime:
    return datetime.now(timezone.utc)


def test_first_time_before_all_that_comes_after(server: str, sender: Conn, channel: str) -> None:
    log = Log()
    with Notifier(server) as n:
        n.subscribe(1, channel, log.heard, on_listen=log.told)
        sender.execute("select pg_notify(%s, '1')", (channel,))
        until(lambda: log == [None, 1])
        n.subscribe(1, channel, log.heard, on_listen=log.told)  # no new first time
        n.unsubscribe(1, channel)
        n.subscribe(1, channel, log.heard, on_listen=log.told)  # but this is one
        sender.execute("select pg_notify(%s, '2')", (channel,))
        until(lambda: log == [None, 1, None, 2])


def test_first_time_on_a_channel_that_is_listened_to(server: str, sender: Conn, channel: str) -> None:
    """A thousand times under traffic: on_listen comes before the first notification, and nothing is missed after."""
    with Notifier(server) as n, psycopg.connect(server, autocommit=True) as conn:
        n.subscribe("other", channel, lambda *a: None)
        done = threading.Event()
        sent = 0

        def write() -> None:
            nonlocal sent
            while not done.is_set():
                conn.execute("select pg_notify(%s, %s)", (channel, str(sent + 1)))
                sent += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(300):
                log = Log()
                n.subscribe(1, channel, log.heard, on_listen=log.told)
                mark = sent + 2  # not begun to be sent yet
                until(lambda log=log, mark=mark: log and log[-1] is not None and log[-1] >= mark)
                n.unsubscribe(1, channel)
                assert log[0] is None
                assert log[1] <= mark
                numbers = log[1:]
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        finally:
            done.set()
            writer.join()


def test_stop_and_start(server: str, sender: Conn, channel: str) -> None:
    log = Log()
    with Notifier(server) as n:
        n.subscribe(1, channel, log.heard, on_listen=log.told)
        until(lambda: log == [None])
        before = now()
        n.stop()
        sender.execute("select pg_notify(%s, '1')", (channel,))
        n.start()
        until(lambda: log == [None, (channel, "stopped")])
        assert log.last.since <= before
        assert before <= log.last.until <= now()
        assert log.last.dropped is None
        assert log.last.error is None


@pytest.mark.parametrize("how", ["channel", "subscriber", "both"])
def test_muted(server: str, sender: Conn, channel: str, how: str) -> None:
    """One Gap for both mutes, when the last of them ends."""
    log = Log()
    with Notifier(server) as n:
        n.subscribe(1, channel, log.heard, on_listen=log.told)
        n.subscribe(2, channel, lambda *a: None)
        until(lambda: log == [None])
        before = now()
        if how != "subscriber":
            n.mute_channels(channel)
        if how != "channel":
            n.mute_subscriber(1)
        sender.execute("select pg_notify(%s, '1')", (channel,))
        if how == "subscriber":
            until(lambda: n.status()["received"])
        else:
            n.unmute_channels(channel)
        if how != "channel":
            n.unmute_subscriber(1)
        sender.execute("select pg_notify(%s, '2')", (channel,))
        until(lambda: log[-1:] == [2])
        assert log == [None, (channel, "muted"), 2]
        assert log.last.since <= before


def test_what_waited_when_it_was_muted_is_covered(server: str, sender: Conn, channel: str) -> None:
    log, entered, release = Log(), threading.Event(), threading.Event()

    def slow(*a: Any) -> None:
        log.heard(*a)
        entered.set()
        release.wait(10)

    with Notifier(server, heartbeat=0.2) as n:
        n.subscribe(1, channel, slow, on_listen=log.told)
        sender.execute("select pg_notify(%s, '1')", (channel,))
        assert entered.wait(10)
        committed = now()
        sender.execute("select pg_notify(%s, '2')", (channel,))
        until(lambda: n.status()["pending"] == 1)
        session = n._supervisor.session
        until(lambda: session.confirmed > committed)
        n.mute_subscriber(1)
        release.set()
        until(lambda: n.status()["pending"] == 0)
        n.unmute_subscriber(1)
        until(lambda: log[-1:] == [(channel, "muted")])
        assert log == [None, 1, (channel, "muted")]
        assert log.last.since <= committed


def test_the_gravest_reason(server: str, sender: Conn, channel: str) -> None:
    """Lost while muted, then stopped: one Gap."""
    log = Log()
    with Notifier(server, retry_delay=(0.01, 0.1)) as n:
        n.subscribe(1, channel, log.heard, on_listen=log.told)
        until(lambda: log == [None])
        n.mute_subscriber(1)
        sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
        until(lambda: n.status()["reconnects"] == 1)
        n.stop()
        n.start()
        n.unmute_subscriber(1)
        until(lambda: len(log) == 2)
        assert log[1] == (channel, "connection")
        assert log.last.error is not None


def test_subscribed_while_stopped_or_muted(server: str, sender: Conn, channel: str) -> None:
    """The first call comes when listening has begun, and is no Gap."""
    log = Log()
    with Notifier(server) as n:
        n.stop()
        n.subscribe(1, channel, log.heard, on_listen=log.told)
        n.mute_channels(channel)
        n.start()
        n.unmute_channels(channel)
        until(lambda: log == [None])
        n.subscribe(2, channel + "x", log.heard, autorun=False, on_listen=log.told)
        sender.execute("select pg_notify(%s, '1')", (channel,))
        until(lambda: log == [None, 1])
        n.restart()
        until(lambda: log == [None, 1, None])


def test_a_failing_on_listen_is_reported(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 8 and 10: as any callback; the notifications that follow are delivered once it has returned."""
    log, events = Log(), Log()
    failures = iter([RuntimeError("on purpose")])

    def fail(*_: Any) -> None:
        for failure in failures:
            raise failure

    with Notifier(server) as n:
        n.subscribe("watch", n.SYSCHAN, events.heard)
        n.subscribe(1, channel, log.heard, on_listen=fail)
        sender.execute("select pg_notify(%s, '1')", (channel,))
        until(lambda: log == [1] and events)
        assert events[0]["event"] == "callback_failed"
        assert n.status()["failed"] == 1


def test_the_heartbeat_notices_that_the_session_listens_no_longer(
    server: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 10: something else ended the LISTEN on the session."""
    log = Log()
    with Notifier(server, heartbeat=0.3, retry_delay=(0.01, 0.1)) as n:
        n.subscribe(1, channel, log.heard, on_listen=log.told)
        until(lambda: log == [None])
        check = Session.check

        def unlisten_first(session: Session, heard: bool) -> float:  # on the listener thread
            monkeypatch.setattr(Session, "check", check)
            session._ask(b"UNLISTEN *")
            return check(session, heard)

        monkeypatch.setattr(Session, "check", unlisten_first)
        until(lambda: log == [None, (channel, "connection")], 5)
        assert "listens to 0 of 2 channels" in str(log.last.error)


def test_an_idle_notifier_wakes_for_its_heartbeat_only(server: str, channel: str) -> None:
    """Guarantees 5 and 15: no system call between heartbeats."""
    with Notifier(server, heartbeat=1.0) as n:
        n.subscribe(1, channel, print)
        loop = n._supervisor.shared.life.loop
        turns = 0
        run_once = loop._run_once

        def counted() -> None:
            nonlocal turns
            turns += 1
            run_once()

        loop._run_once = counted
        n.subscribe(2, channel + "x", print)  # the next thread runs the counting loop
        answered = n._supervisor.session._answered
        until(lambda: n._supervisor.session._answered != answered)
        turns = 0
        answered = n._supervisor.session._answered
        until(lambda: n._supervisor.session._answered != answered)
        assert turns <= 8  # the question, its answer, and a look for more


def test_connected_and_stopped_events(server: str) -> None:
    """Guarantee 6: `connected` with every start, `stopped` before stop() returns."""
    events = Log()
    with Notifier(server) as n:
        n.subscribe("watch", n.SYSCHAN, events.heard)
        n.stop()
        assert events == [{"event": "stopped"}]
        n.start()
        until(lambda: events[1:] == [{"event": "connected"}])
        n.notify(n.SYSCHAN, {"event": "forged"})
        until(lambda: len(events) == 3)
        n.mute_channels(n.SYSCHAN)
        before = n.status()["received"]
        n.notify(n.SYSCHAN, 1)
        until(lambda: n.status()["received"] > before)
        n.unmute_channels(n.SYSCHAN)
        n.notify(n.SYSCHAN, 2)
        until(lambda: events[3:] == [2])
        assert n.active_channels() == []
