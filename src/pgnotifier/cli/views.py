"""The lines that `listen` and `doctor` write: for people, or as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal, Protocol

from ..gap import Gap
from .terminal import Line, printable


class View(Protocol):
    """Makes lines. `at` is an aware datetime: when the notification was handed over (PostgreSQL sends no time)."""

    events_in_stream: bool  # False: gaps and events go to standard error, not among the notifications

    def notification(self, at: datetime, channel: str, text: str, value: Any, pid: int) -> Line:
        """Return a line for a notification; `value` is `text` decoded."""

    def gap(self, at: datetime, gaps: Sequence[Gap]) -> Line:
        """Return a line for the gaps of one loss, one for each channel."""

    def event(self, at: datetime, event: Mapping[str, Any]) -> Line:
        """Return a line for one of the notifier's own events (guarantee 6)."""


class Plain:
    """Time, channel, pid and payload as it came, two spaces between; the local clock on a terminal, else UTC."""

    events_in_stream = False

    def __init__(self, *, local_time: bool) -> None:
        self._local = local_time

    def notification(self, at: datetime, channel: str, text: str, value: Any, pid: int) -> Line:
        time = self._clock(at) if self._local else _iso(at, "milliseconds")
        return [
            (f"{time}  ", "dim"),
            (f"{printable(channel)}  ", "channel"),
            (f"{pid}  ", "dim"),
            (printable(text), ""),
        ]

    def gap(self, at: datetime, gaps: Sequence[Gap]) -> Line:
        gap = _joined(gaps)
        missed = "notifications" if gap.dropped is None else f"{gap.dropped:,} notifications"
        if gap.reason != "overflow":
            missed += " may have been"
        else:
            missed += " were"
        between = f"between {self._clock(gap.since)} and {self._clock(gap.until)}"
        return self._line(at, f"gap on {listed(g.channel for g in gaps)}: {missed} missed {between} ({gap.reason})")

    def event(self, at: datetime, event: Mapping[str, Any]) -> Line:
        match event["event"]:
            case "disconnected":
                text = f"connection lost, connecting again: {event.get('error')}"
            case "reconnected":
                text = f"connected again after {event.get('down_for', 0):.1f} s, attempt {event.get('attempts')}"
            case name:
                text = " ".join([str(name), *(f"{k}={v}" for k, v in event.items() if k != "event")])
        return self._line(at, text)

    def _line(self, at: datetime, text: str) -> Line:
        return [(f"{self._clock(at)}  {printable(' '.join(text.split()))}", "warning")]

    def _clock(self, at: datetime) -> str:
        return at.astimezone().strftime("%H:%M:%S.") + f"{at.microsecond // 1000:03d}"


_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Json:
    """One object a line: `time`, `channel`, `payload`, `pid`, or `time`, `event` and what belongs to it.

    `payload` is decoded; if JSON has no such value (bytes, a set, an infinity), it is the text as it came.
    """

    events_in_stream = True

    def notification(self, at: datetime, channel: str, text: str, value: Any, pid: int) -> Line:
        try:
            payload = _to_json(value)
        except (TypeError, ValueError, RecursionError):
            payload = _to_json(text)
        line = f'{{"time": "{_iso(at)}", "channel": {_to_json(channel)}, "payload": {payload}, "pid": {pid}}}'
        return [(line, "")]

    def gap(self, at: datetime, gaps: Sequence[Gap]) -> Line:
        gap = _joined(gaps)
        return self._line(
            at,
            event="gap",
            channels=[g.channel for g in gaps],
            reason=gap.reason,
            since=_iso(gap.since),
            until=_iso(gap.until),
            dropped=gap.dropped,
            error=gap.error,
        )

    def event(self, at: datetime, event: Mapping[str, Any]) -> Line:
        return self._line(at, **event)

    def _line(self, at: datetime, **fields: Any) -> Line:
        return [(json.dumps({"time": _iso(at), **fields}, ensure_ascii=False, default=str), "")]


def listed(names: Iterable[str]) -> str:
    """Return the channels on one line, or how many there are."""
    known = list(names)
    text = printable(", ".join(known))
    return text if len(text) <= 60 else f"{len(known)} channels"


def _joined(gaps: Sequence[Gap]) -> Gap:
    """Return one gap that covers all of them; only its channel means nothing."""
    return replace(gaps[0], since=min(gap.since for gap in gaps), until=max(gap.until for gap in gaps))


def _iso(at: datetime, timespec: str = "microseconds") -> str:
    return at.astimezone(timezone.utc).isoformat(timespec=timespec)


@dataclass(frozen=True)
class Check:
    """One finding of `doctor`. `facts` are what was measured, for programs; times are in milliseconds."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def check_lines(check: Check) -> list[Line]:
    """Return a line with the verdict, and one with the remedy."""
    lines: list[Line] = [
        [(f"{check.verdict:9}", check.verdict), (f"{check.check:13}", "heading"), (printable(check.detail), "")]
    ]
    if check.remedy is not None:
        lines.append([(f"{'':9}{'':13}", ""), (f"-> {printable(check.remedy)}", "dim")])
    return lines
