"""What a stream gives to its readers (guarantee 16). Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from .gap import Gap


class Notification(NamedTuple):
    """A notification: its channel, the decoded payload, and the pid of the server process that sent it.

    0 is the pid of the notifier's own events.
    """

    channel: str
    payload: Any
    pid: int


class Listening(NamedTuple):
    """Listening is in effect on these channels: read your state now.

    - `gaps`: empty where listening begins; else what may have been missed, a `Gap` for each stretch and channel.
    """

    channels: tuple[str, ...]
    gaps: tuple[Gap, ...]


Event = Notification | Listening
