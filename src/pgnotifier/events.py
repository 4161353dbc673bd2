"""The events that readers of a stream get (guarantee 16). Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from .gap import Gap


class Notification(NamedTuple):
    """A notification: its channel, the decoded payload, and the pid of the server process that sent it.

    The notifier's own events have pid 0.
    """

    channel: str
    payload: Any
    pid: int


class Listening(NamedTuple):
    """The server listens to `channels`: read your state now.

    - `gaps`: empty when listening begins; else a `Gap` for each channel on which notifications may have been missed.
    """

    channels: tuple[str, ...]
    gaps: tuple[Gap, ...]


Event = Notification | Listening
