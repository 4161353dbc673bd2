"""What stands in a mailbox: runs of notifications, shared by all subscribers, and calls of `on_listen`. No logic."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from .coverage import ListenCall

UNKNOWN: Any = object()  # a payload that has not been decoded
FAILED: Any = object()  # a payload that can't be


class Decoded:
    """The payloads of a run that several subscribers share, each decoded by the first worker that needs it."""

    __slots__ = ("lock", "payloads")

    def __init__(self, payloads: list[Any], lock: Any) -> None:
        self.payloads, self.lock = payloads, lock


class Run:
    """Notifications on one channel that arrived together: one object for all its subscribers.

    `notifications[start:stop]` is the run. Everything committed before `since` had been received when it was posted.
    """

    __slots__ = ("channel", "decoded", "notifications", "since", "start", "stop")

    def __init__(
        self,
        channel: str,
        notifications: Sequence[Any],
        since: datetime,
        decoded: Decoded | None,
        start: int,
        stop: int,
    ) -> None:
        self.channel, self.notifications, self.since, self.decoded = channel, notifications, since, decoded
        self.start, self.stop = start, stop

    def part(self, start: int, stop: int) -> Run:
        return Run(self.channel, self.notifications, self.since, self.decoded, start, stop)


class Latest(Run):
    """A run of one notification whose place newer ones of the channel take while it waits (`deliver="latest"`)."""

    __slots__ = ()

    def replace(self, run: Run) -> None:
        self.notifications, self.decoded = run.notifications, run.decoded
        self.start, self.stop = run.stop - 1, run.stop


Entry = Run | ListenCall
