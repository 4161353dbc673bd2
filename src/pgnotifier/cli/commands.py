"""`pgnotifier listen`, `notify` and `doctor`.

A worker of the notifier receives notifications, and the main thread writes all that wait at once. So the main thread
meets closed pipes and Ctrl-C, and a terminal is drawn once for many lines.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import groupby
from json import dumps
from typing import Any

import psycopg

from ..connection.sender import Sender
from ..errors import NotifierError
from ..gap import Gap
from ..notifier import Notifier
from ..payload import decode
from .advice import CommandFailed
from .advice import line as advise
from .doctor import examine
from .terminal import Line, Terminal, printable
from .views import View, check_lines, listed

FEED_LIMIT = 10_000  # lines between the worker and the main thread; then the notifier's own mailbox fills
FRAME = 0.03  # seconds between two drawings of a terminal, which cost as much for one line as for a hundred


class Feed:
    """A queue of lines for the main thread. `put` blocks while it is full, and does nothing once it is closed."""

    def __init__(self, limit: int = FEED_LIMIT) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._lines: list[tuple[Line, bool]] = []
        self.closed: bool = False

    def put(self, line: Line, counts: bool) -> None:
        """Add a line. On the worker. `counts`: it is a notification, not an event."""
        with self._changed:
            while len(self._lines) >= self._limit and not self.closed:
                self._changed.wait()
            if not self.closed:
                self._lines.append((line, counts))
                if len(self._lines) == 1:
                    self._changed.notify_all()

    def take(self, gather: float = 0.0) -> list[tuple[Line, bool]]:
        """Return all lines that wait, `gather` seconds after the first came; an empty list if closed."""
        with self._changed:
            seconds = 0.01
            while not self._lines and not self.closed:
                self._changed.wait(seconds)  # a signal just before it is handled after it
                seconds = min(2 * seconds, 0.5)
            if gather:
                self._changed.wait_for(lambda: self.closed, gather)
            lines, self._lines = self._lines, []
            self._changed.notify_all()
            return lines

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()


def listen(
    dsn: str,
    channels: Sequence[str],
    view: View,
    terminal: Terminal,
    *,
    count: int | None = None,
    quiet: bool = False,
    notifier: Callable[..., Any] = Notifier,
) -> None:
    """Write a line per notification on `channels` until Ctrl-C, `count` notifications, or a closed pipe.

    Raises `psycopg.OperationalError` if it can't begin, `CommandFailed` if the notifier has stopped by itself, and
    OSError if it can't write.
    """
    feed, ended = Feed(), threading.Event()
    names = dict.fromkeys(channels)
    received = 0
    lost: list[Gap] = []  # gaps of a lost connection, until the event `reconnected`

    def put_gaps(gaps: list[Gap]) -> None:
        if gaps:
            feed.put(view.gap(_now(), sorted(gaps, key=lambda gap: gap.channel)), False)
            gaps.clear()

    def heard(id: object, channel: str, payload: Any, pid: int) -> None:
        if pid == 0:  # an event of the notifier's own: its payload is a dict, not a pair
            if payload["event"] == "stopped":
                if not feed.closed:  # this command has not stopped it
                    ended.set()
                    feed.close()
            elif payload["event"] != "connected":
                feed.put(view.event(_now(), payload), False)
                if payload["event"] == "reconnected":
                    put_gaps(lost)
        elif channel in names:
            put_gaps(lost)  # a gap comes before the notifications after it
            text, value = payload
            feed.put(view.notification(_now(), channel, text, value, pid), True)

    def listening(id: object, channel: str, gap: Gap | None) -> None:
        if gap is None:
            return
        if gap.reason == "connection":
            lost.append(gap)
        else:
            put_gaps([gap])

    def progress() -> str:
        return f"listening to {listed(names)}: {received:,} received (Ctrl-C ends)"

    with contextlib.ExitStack() as stack:
        with terminal.waiting(_connecting):
            n = stack.enter_context(notifier(dsn, decode=lambda text: (text, decode(text))))
        try:
            for name in names:
                n.subscribe("listen", name, heard, False, on_listen=listening)
            if n.SYSCHAN not in names:
                n.subscribe("listen", n.SYSCHAN, heard, False)
            n.start()
            if not quiet and not terminal.has_live_line:
                terminal.note([[(f"listening to {listed(names)} (Ctrl-C ends)", "dim")]])
            _watch_reader(feed.close)
            with terminal.waiting(progress):
                while count is None or received < count:
                    batch = feed.take(FRAME if terminal.interactive else 0.0)
                    if not batch:
                        break
                    left = len(batch) if count is None else count - received
                    for counts, group in groupby(batch, key=lambda entry: entry[1]):
                        lines = [line for line, _ in group]
                        if counts:
                            lines = lines[:left]
                            left -= len(lines)
                            received += len(lines)
                        if counts or view.events_in_stream:
                            terminal.write(lines)
                        else:
                            terminal.note(lines)
                        if count is not None and left == 0:
                            break
        finally:
            feed.close()
    if ended.is_set():
        raise CommandFailed("the listener has stopped")


def notify(dsn: str, channel: str, payload: str, terminal: Terminal) -> None:
    """Send `payload` as it is, or, if it is "-", every line of standard input as one notification.

    Each is committed by itself, in order. Raises `psycopg.Error` and `NotifierError`; with "-" both as
    `CommandFailed`, which names the line: those before it are sent.
    """
    sender = Sender(dsn)
    sent = 0

    def send_lines() -> None:
        nonlocal sent
        for raw in sys.stdin.buffer:
            sender.send(channel, raw.removesuffix(os.linesep.encode()).decode())
            sent += 1

    try:
        if payload != "-":
            with terminal.waiting(_connecting):
                sender.send(channel, payload)
        elif sys.stdin is not None:
            typed = sys.stdin.isatty()
            try:
                if typed:
                    terminal.note([[(f"a line is a notification on {printable(channel)} (Ctrl-D ends)", "dim")]])
                    send_lines()
                else:
                    with terminal.waiting(lambda: f"{sent:,} sent to {printable(channel)}"):
                        send_lines()
            except (NotifierError, ValueError) as error:  # ValueError: not UTF-8, or a NUL
                raise CommandFailed(f"line {sent + 1} of standard input: {error}; {sent:,} sent before it") from error
            except psycopg.Error as error:
                raise CommandFailed(f"after {sent:,} sent: {advise(error, dsn)}") from error
    finally:
        sender.close()


def diagnose(dsn: str, terminal: Terminal, *, json: bool = False) -> int:
    """Print the result of each check at once (`json`: one object a line). Return 1 if a check has failed, else 0."""
    counts = {"ok": 0, "warning": 0, "failed": 0}
    with terminal.waiting(lambda: "checking ..."):
        for check in examine(dsn):
            counts[check.verdict] += 1
            terminal.write([[(dumps(asdict(check)), "")]] if json else check_lines(check))
    if not json:
        worst = next(verdict for verdict in ("failed", "warning", "ok") if counts[verdict])
        terminal.write([[(", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n), worst)]])
    return 1 if counts["failed"] else 0


def _connecting() -> str:
    return "connecting ..."


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _watch_reader(gone: Callable[[], None]) -> None:
    """Call `gone` when the reader of standard output has gone, even while nothing is written (`| head -1`)."""
    try:
        fd = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError, ValueError):
        return  # no such file, or a system without poll: then the next write notices
    poll.register(fd, 0)  # errors and hang-ups are reported without being asked for

    def watch() -> None:
        poll.poll()
        gone()

    threading.Thread(target=watch, name="stdout-watch", daemon=True).start()
