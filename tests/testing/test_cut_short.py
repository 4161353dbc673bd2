"""Guarantees 3, 7, 10 and 11: what Ctrl-C, an error or a want of threads cuts short is made good, or never began."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any

import pytest

from conftest import until
from pgnotifier.supervisor import Supervisor
from pgnotifier.testing import MemoryNotifier, MemoryServer

from .forcing import SECONDS, CtrlC, Log, Stall, at_every_place


@pytest.fixture
def memory() -> Iterator[MemoryServer]:
    with MemoryServer() as memory:
        yield memory


@pytest.fixture
def n(memory: MemoryServer) -> MemoryNotifier:
    return memory.Notifier()


# -- Ctrl-C -----------------------------------------------------------------------------------------------------


def busy(memory: MemoryServer, n: MemoryNotifier, log: Log, **options: Any) -> Stall:
    """Subscribe "x" to the channels "a" and "b"; in the callback for "b" it is busy now. Others hear "a" too."""
    callback = Stall()
    n.subscribe("others", "a", lambda *_: None)
    n.subscribe("x", n.SYSCHAN, lambda *_: None)  # which keeps its mailbox from being deleted
    n.subscribe("x", "a", log.heard, **options)
    n.subscribe("x", "b", callback)
    memory.settle()
    memory.notify("b")
    assert callback.here.wait(SECONDS)
    return callback


def mute_and_unmute(n: MemoryNotifier, ctrl_c: CtrlC, callback: Stall) -> None:
    with ctrl_c.block():
        n.mute_subscriber("x", "a")
    callback.go()
    n.stop()
    n.start()
    n.unmute_subscriber("x", "a")


def test_ctrl_c_in_a_mute_leaves_no_place_that_nobody_reads(memory: MemoryServer) -> None:
    """Guarantee 11: after stop() and start() a subscriber with deliver="latest" hears what comes."""

    def trial(ctrl_c: CtrlC) -> None:
        log, n = Log(), memory.Notifier()
        callback = busy(memory, n, log, deliver="latest")
        memory.notify("a", 1)
        until(lambda: n.status()["received"] == 2, SECONDS)
        mute_and_unmute(n, ctrl_c, callback)
        memory.notify("a", 2)
        memory.settle()
        assert log[-1:] == [2]
        assert n.status()["pending"] == 0
        n.stop()

    at_every_place(trial)


def test_ctrl_c_in_a_mute_loses_no_gap(memory: MemoryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantees 10 and 11: a call of on_listen that waited is made later, if perhaps twice."""
    monkeypatch.setattr("pgnotifier.connection.exchange.SIGNAL_TIME", timedelta(0))

    def trial(ctrl_c: CtrlC) -> None:
        log, told, n = Log(), Log(), memory.Notifier()
        callback = busy(memory, n, log, on_listen=told.told)
        with n.connection_lost():
            memory.notify("a", 1)
            missed = datetime.now(timezone.utc)
        mute_and_unmute(n, ctrl_c, callback)
        memory.settle()
        assert log == []
        assert told[:1] == [None]
        assert any(gap.since <= missed <= gap.until for gap in told[1:])
        n.stop()

    at_every_place(trial)


def test_ctrl_c_twice_in_start(memory: MemoryServer, n: MemoryNotifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 11: before the thread is started, and as the cleaning up begins; the next start() works."""
    log, hits = Log(), count()
    n.stop()
    n.subscribe("x", "a", log.heard)

    def ctrl_c(*_: Any) -> None:
        next(hits)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pgnotifier.threads.start", ctrl_c)
        patch.setattr(Supervisor, "_finish", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            n.start()
    assert next(hits) == 2
    n.start()
    memory.notify("a", 1)
    memory.settle()
    assert log == [1]


# -- errors of the user's ---------------------------------------------------------------------------------------


class Id:
    """Its hash fails as often as `failures` says, on a listener thread."""

    failures = 0

    def __hash__(self) -> int:
        if self.failures and threading.current_thread().name == "pgnotifier-listener":
            self.failures -= 1
            raise MemoryError("on purpose")
        return 1


def test_an_error_while_a_new_session_is_published(memory: MemoryServer, n: MemoryNotifier) -> None:
    """Guarantee 10: the listener reconnects without limit."""
    log, id = Log(), Id()
    n.subscribe(id, "a", log.heard)
    n.lose_connection()
    id.failures = 1
    n.restore_connection()
    assert id.failures == 0
    memory.notify("a", 1)
    memory.settle()
    assert log == [1]
    assert n.status()["reconnects"] == 1


@pytest.mark.parametrize("how", ["plain", "shared", "awaited"])
def test_system_exit_in_a_decoder(memory: MemoryServer, how: str) -> None:
    """Guarantee 7: it is reported as decode_failed, as any error is; the next notification is delivered."""

    def decode(text: str) -> int:
        if text == "exit":
            raise SystemExit
        return int(text)

    n = memory.Notifier(decode=decode)
    log, events = Log(), Log()

    async def awaited(id: Any, channel: str, payload: Any, pid: int) -> None:
        log.append(payload)

    async def main() -> None:
        n.subscribe("e", n.SYSCHAN, events.heard)
        n.subscribe("x", "a", awaited if how == "awaited" else log.heard)
        if how == "shared":
            n.subscribe("y", "a", lambda *_: None)
        with memory.transaction() as transaction:
            for payload in (1, "exit", 3):
                transaction.notify("a", payload)
        await asyncio.to_thread(memory.settle)

    asyncio.run(main())
    assert n.is_running()
    assert log == [1, 3]
    assert [(event["event"], event["payload"]) for event in events] == [("decode_failed", "exit")]
    assert n.status()["failed"] == 1


# -- no threads -------------------------------------------------------------------------------------------------


def test_a_deferred_call_for_which_there_is_no_thread(
    memory: MemoryServer, n: MemoryNotifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 3: it raises, and applies not at all; the next deferred call does not bring it."""
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "pgnotifier-change":
            raise RuntimeError("can't start new thread")
        start(thread)

    with n._dispatcher.lock, monkeypatch.context() as patch:  # as in a signal handler that interrupts a change
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="new thread"):
            n.subscribe("x", "a", print)
    with n._dispatcher.lock:
        n.subscribe("y", "b", print)
    until(lambda: "b" in n.active_channels(), SECONDS)
    assert [*n.subscribers()] == ["y"]
