"""What stands in a mailbox: runs of notifications, shared by all subscribers, and calls of `on_listen`. No logic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .coverage import ListenCall

UNKNOWN: Any = object()  # a payload that has not been decoded
FAILED: Any = object()  # a payload that can't be


@dataclass(slots=True, eq=False)
class Run:
    """Notifications on one channel that arrived together: one object for all its subscribers.

    `notifications[start:stop]` is the run. Everything committed before `since` had been received when it was posted.
    If several subscribers share it, `payloads` has a place for each notification, and the first worker that needs a
    payload decodes it for all, under `lock`.
    """

    channel: str
    notifications: Sequence[Any]
    since: datetime
    start: int
    stop: int
    payloads: list[Any] | None = None
    lock: Any = None

    @property
    def size(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Run:
        return Run(self.channel, self.notifications, self.since, start, stop, self.payloads, self.lock)


Entry = Run | ListenCall
