"""The record of a period in which notifications may have been missed (guarantee 10), and how two become one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Reason = Literal["connection", "stopped", "muted", "overflow", "trimmed", "restored", "channels"]

GRAVEST_FIRST: tuple[Reason, ...] = ("connection", "stopped", "muted", "overflow")  # the others are the journal's


@dataclass(frozen=True, slots=True)
class Gap:
    """What `on_listen` is told of a stretch of time in which notifications may have been missed.

    - `channel`: its name.
    - `reason`: `"connection"` (it was lost), `"stopped"`, `"muted"` or `"overflow"` (the subscriber was too slow); of
      causes that overlap, the first of these. A consumer of the journal is told of others: `"trimmed"`, `"restored"`
      and `"channels"` (guarantee 18).
    - `since`, `until`: aware UTC datetimes, `since <= until`; all before `since` was heard, and all after `until` is.
    - `dropped`: how many were thrown away, or None where that can't be known.
    - `error`: what ended the connection, or None.
    """

    channel: str
    reason: Reason
    since: datetime
    until: datetime
    dropped: int | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.since > self.until:  # the system's clock was set back in between
            object.__setattr__(self, "since", self.until)


def merge(one: Gap | None, other: Gap) -> Gap:
    """One gap for both, under the graver reason."""
    if one is None:
        return other
    reason = min(one.reason, other.reason, key=GRAVEST_FIRST.index)
    known = one.dropped is not None and other.dropped is not None
    return Gap(
        one.channel,
        reason,
        min(one.since, other.since),
        max(one.until, other.until),
        (one.dropped or 0) + (other.dropped or 0) if known else None,
        one.error or other.error,
    )
