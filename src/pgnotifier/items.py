"""What stands in a mailbox, beside psycopg's own `Notify` and the tellings of `hearing`. No logic."""

from __future__ import annotations

from typing import Any

from psycopg import Notify

from .hearing import Telling
from .registry import SYSCHAN


class Shared:
    """A notification for several subscribers: decoded once, by the first worker that needs it, under `lock`."""

    __slots__ = ("channel", "failed", "lock", "payload", "pid", "text", "undecoded")

    def __init__(self, channel: str, text: str, pid: int, lock: Any) -> None:
        self.channel, self.text, self.pid, self.lock = channel, text, pid, lock
        self.undecoded, self.failed = True, False
        self.payload: Any = None


class Event(Shared):
    """One of the notifier's own events: nothing to decode."""

    __slots__ = ()

    def __init__(self, payload: dict[str, Any]) -> None:
        super().__init__(SYSCHAN, "", 0, None)
        self.undecoded, self.payload = False, payload


class Begin:
    """A subscription began here: what stands before it on its channel belonged to an earlier one."""

    __slots__ = ("channel",)

    def __init__(self, channel: str) -> None:
        self.channel = channel


Item = Notify | Shared | Telling | Begin


class Latest:
    """A place in the queue that newer ones of its channel take over while it is open (`deliver="latest"`)."""

    __slots__ = ("channel", "item", "open")

    def __init__(self, item: Any) -> None:
        self.channel, self.item, self.open = item.channel, item, True
