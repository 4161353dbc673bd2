"""Types of arguments and results, to annotate with: `from pgnotifier.types import Callback`. Pure, no logic.

Functions have protocols. Their arguments are positional, so they may have any names.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from .gap import Gap, Reason

__all__ = [
    "AsyncCallback",
    "AsyncOnListen",
    "Callback",
    "ChannelState",
    "ChannelSubscriber",
    "Channels",
    "Conninfo",
    "DbConf",
    "Decoder",
    "Deliver",
    "OnListen",
    "Reason",
    "Status",
    "SubscriberChannel",
    "SubscriberState",
    "Url",
]


class Callback(Protocol):
    """A subscriber: called as `fn(id, channel, payload, pid)` on a worker thread; its result is ignored.

    An `async def` is one too: it is awaited on its event loop.
    """

    def __call__(self, id: Any, channel: str, payload: Any, pid: int, /) -> object: ...


class AsyncCallback(Callback, Protocol):
    """A subscriber that is awaited on its event loop: an `async def`."""

    def __call__(self, id: Any, channel: str, payload: Any, pid: int, /) -> Coroutine[Any, Any, object]: ...


class OnListen(Protocol):
    """Called as `on_listen(id, channel, gap)`: with None when listening begins, with a `Gap` after a possible loss.

    An `async def` is one too: it is awaited on its event loop.
    """

    def __call__(self, id: Any, channel: str, gap: Gap | None, /) -> object: ...


class AsyncOnListen(OnListen, Protocol):
    """An `on_listen` that is awaited on its event loop: an `async def`."""

    def __call__(self, id: Any, channel: str, gap: Gap | None, /) -> Coroutine[Any, Any, object]: ...


class Decoder(Protocol):
    """Called with a payload's text on a worker thread; returns its value. Errors are reported as `decode_failed`."""

    def __call__(self, text: str, /) -> Any: ...


@runtime_checkable
class Url(Protocol):
    """A SQLAlchemy `URL`."""

    def render_as_string(self, hide_password: bool = True) -> str: ...


Conninfo = str | Mapping[str, Any] | Url
"""Connection parameters: a URI (also with a driver, as SQLAlchemy writes it) or `key=value` pairs in a string; a
mapping of `psycopg.connect` arguments; or a SQLAlchemy `URL`."""

DbConf = Conninfo | Callable[[], Conninfo]
"""A `Conninfo`, or a callable that returns one and is called before every connection."""

Channels = str | Iterable[str]
"""One channel's name, or several."""

Deliver = Literal["all", "latest"]
"""Whether a subscriber gets every notification, or of a channel only the newest that waits."""


class ChannelSubscriber(TypedDict):
    """A subscriber in `ChannelState`; `mute` is its own state on that channel."""

    fn: Callback
    mute: bool


class ChannelState(TypedDict):
    """A channel in `Notifier.channels()`; `active`: it is listened to now."""

    mute: bool
    active: bool
    subscribers: dict[Hashable, ChannelSubscriber]


class SubscriberChannel(TypedDict):
    """A channel in `SubscriberState`; `mute` is the channel's state, `sub_mute` the subscriber's own on it."""

    fn: Callback
    active: bool
    mute: bool
    sub_mute: bool


class SubscriberState(TypedDict):
    """A subscriber in `Notifier.subscribers()`; `fn` is the latest of its callbacks."""

    fn: Callback
    channels: dict[str, SubscriberChannel]


class Status(TypedDict):
    """`Notifier.status()`. `since` and `confirmed` are aware UTC datetimes; the counters only grow."""

    running: bool
    connected: bool
    pid: int | None
    active: list[str]
    received: int
    delivered: int
    failed: int
    dropped: int
    pending: int
    restarts: int
    reconnects: int
    last_error: str | None
    since: datetime
    last_failure: str | None
    longest_call: tuple[Hashable, str, float] | None
    confirmed: datetime | None
