"""What the server says when it ends a session is what users are told (guarantee 10)."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Gap, Notifier

from .servers import Server

Terminate = Callable[[Server, int], object]


def crash(db: Server, pid: int) -> None:
    """A process of the server dies, so it ends all others, and begins again."""
    with psycopg.connect(db.dsn) as conn:
        os.kill(conn.info.backend_pid, signal.SIGKILL)


ENDS: dict[str, tuple[Terminate, str]] = {
    "terminated": (Server.terminate, "terminating connection due to administrator command"),
    "idle": (lambda db, pid: None, "terminating connection due to idle-session timeout"),
    "fast": (lambda db, pid: db.restart("fast"), "terminating connection due to administrator command"),
    "immediate": (
        lambda db, pid: db.restart("immediate"),
        "terminating connection due to immediate shutdown command",
    ),
    "crash": (crash, "terminating connection because of crash of another server process"),
}

SILENT = ("immediate", "crash")  # the server often ends sessions without a reason then

CASES = [(how, heartbeat) for how in ENDS for heartbeat in (30.0, 0.05)]
CASES.remove(("idle", 0.05))  # it is never idle for as long


@pytest.mark.parametrize(("how", "heartbeat"), CASES)
def test_the_reason(db: Server, channel: str, how: str, heartbeat: float, caplog: pytest.LogCaptureFixture) -> None:
    """Guarantee 10: in the gap, the event, the log and the status, on one line."""
    end, reason = ENDS[how]
    gaps: list[Gap] = []
    events: list[Any] = []
    errors: list[str | None] = []
    dsn = f"{db.dsn} password=secret options='-c idle_session_timeout={200 if how == 'idle' else 0}'"
    caplog.set_level(logging.INFO, "pgnotifier")
    with Notifier(dsn, heartbeat=heartbeat, retry_delay=(0.01, 0.05)) as n:

        def heard(id: object, channel: str, payload: Any, pid: int) -> None:
            if payload["event"] == "disconnected":
                events.append(payload["error"])
                errors.append(n.status()["last_error"])

        n.subscribe("events", n.SYSCHAN, heard)
        n.subscribe("s", channel, print, on_listen=lambda id, name, gap: gaps.append(gap) if gap else None)
        for _ in range(10 if how in SILENT else 1):
            gaps.clear()
            events.clear()
            errors.clear()
            caplog.clear()
            until(lambda: n.status()["connected"])
            end(db, n.status()["pid"] or 0)
            until(lambda: gaps and events)
            if reason in events[0]:
                break
    assert gaps[0].reason == "connection"
    for text in (gaps[0].error, events[0]):
        assert re.fullmatch(rf"\w+: {reason}", text or "")
    if how in ("terminated", "idle"):  # else an attempt to connect may have failed by then
        assert errors[0] == gaps[0].error
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if line.startswith("the connection is lost") and line.endswith(reason)]
    assert "secret" not in "".join(lines)
    lost = [line for line in lines if line.startswith("the connection is lost")]  # attempts to connect may fail so
    assert "server closed the connection unexpectedly" not in "".join(lost)


def test_the_reason_while_a_change_waits_for_its_answer(db: Server, channel: str) -> None:
    """Guarantee 10: the session of a `subscribe` that the server keeps waiting is ended."""
    with Notifier(db.dsn, heartbeat=30.0, retry_delay=(0.01, 0.05)) as n:
        pid = n.status()["pid"] or 0
        db.freeze(pid)
        db.terminate(pid)
        with psycopg.connect(db.dsn, autocommit=True) as conn:
            change = threading.Thread(target=n.subscribe, args=(1, channel, print))
            change.start()
            query = "select count(*) from pg_stat_activity where pid = %s"
            assert conn.execute(query, (pid,)).fetchone() == (1,)
            db.thaw(pid)
            change.join(5)
            assert not change.is_alive()
        assert re.fullmatch(
            r"\w+: terminating connection due to administrator command", n.status()["last_error"] or ""
        )
        until(lambda: n.active_channels() == [channel])
