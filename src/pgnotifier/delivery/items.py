"""What stands in a mailbox, beside psycopg's own `Notify` and the tellings of `hearing`. No logic."""

from __future__ import annotations

from collections import deque
from typing import Any

from psycopg import Notify

from ..registry import SYSCHAN, Channel, Subscription
from .coverage import Telling


class Shared:
    """A notification for several subscribers: decoded once, by the first worker that needs it, under `lock`."""

    __slots__ = ("channel", "failed", "lock", "payload", "pid", "text", "undecoded")
    channel: str
    text: str
    pid: int
    lock: Any
    undecoded: bool
    failed: bool
    payload: Any

    def __init__(self, channel: str, text: str, pid: int, lock: Any) -> None:
        self.channel, self.text, self.pid, self.lock = channel, text, pid, lock
        self.undecoded, self.failed = True, False
        self.payload = None


class Event(Shared):
    """One of the notifier's own events: nothing to decode."""

    __slots__ = ()

    def __init__(self, payload: dict[str, Any]) -> None:
        super().__init__(SYSCHAN, "", 0, None)
        self.undecoded: bool = False
        self.payload: Any = payload


class Begin:
    """A subscription began here: what stands before it on its channel belonged to an earlier one."""

    __slots__ = ("channel",)
    channel: str

    def __init__(self, channel: str) -> None:
        self.channel = channel


Item = Notify | Shared | Telling | Begin


class Fanout:
    """One notification for many idle mailboxes, whose claims it has: one hand-over instead of one for each.

    `left`: those that it has not come to, each with its subscription as `entry`, the channel's, has it. Void where
    the epoch is another by then.
    """

    __slots__ = ("entry", "epoch", "item", "left")
    item: Shared
    entry: Channel
    epoch: int
    left: deque[tuple[Any, Subscription]]

    def __init__(self, item: Shared, entry: Channel, epoch: int, left: deque[tuple[Any, Subscription]]) -> None:
        self.item, self.entry, self.epoch, self.left = item, entry, epoch, left


class Latest:
    """A place in the queue that newer ones of its channel take over while it is open (`deliver="latest"`)."""

    __slots__ = ("channel", "item", "open")
    channel: str
    item: Any
    open: bool

    def __init__(self, item: Any) -> None:
        self.channel, self.item, self.open = item.channel, item, True
