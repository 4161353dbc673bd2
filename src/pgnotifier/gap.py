"""The record of a period in which notifications may have been missed (guarantee 10), and how two become one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Reason = Literal["connection", "stopped", "muted", "overflow", "trimmed", "restored", "channels"]

GRAVEST_FIRST: tuple[Reason, ...] = ("connection", "stopped", "muted", "overflow")  # the others are the journal's


@dataclass(frozen=True, slots=True)
class Gap:
    """A period in which notifications on a channel may have been missed, as reported to `on_listen`.

    - `channel`: its name.
    - `reason`: `"connection"` (it was lost), `"stopped"`, `"muted"` or `"overflow"` (the subscriber was too slow). If
      causes overlap, the first of these. The journal reports others: `"trimmed"`, `"restored"` and `"channels"`
      (guarantee 18).
    - `since`, `until`: aware UTC datetimes, `since <= until`. No commit before `since` or after `until` was missed.
    - `dropped`: number of notifications thrown away, or None if it can't be known.
    - `error`: the reason why the connection ended, or None.
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
    """Return one gap that covers both, under the graver reason."""
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
