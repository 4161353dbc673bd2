"""Checks of what users pass, before anything is touched (contract 12): each text names the value and the limit."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import FunctionType
from typing import Any

from .errors import InvalidChannel
from .registry import Subscription
from .types import Callback, OnListen

MAX_CHANNEL_BYTES = 63


def check_channel(name: object) -> str:
    """Return `name` where PostgreSQL can hold it exactly as given (contract 12)."""
    if not isinstance(name, str):
        raise TypeError(f"a channel name must be a str, not {type(name).__name__}: {name!r:.100}")
    if not name:
        raise InvalidChannel("a channel name must not be empty: ''")
    if "\0" in name:
        raise InvalidChannel(f"a channel name must not hold NUL: {name!r:.100}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidChannel(f"a channel name must not hold a lone surrogate: {name!r:.100}") from None
    if size > MAX_CHANNEL_BYTES:
        raise InvalidChannel(
            f"a channel name must be at most {MAX_CHANNEL_BYTES} bytes in UTF-8, not {size}: {name!r:.100}"
        )
    return str(name)


def check_channels(channels: object) -> tuple[str, ...]:
    """Return the names as a tuple without repetitions: one `str`, or an iterable of `str`."""
    if isinstance(channels, str):
        return (check_channel(channels),)
    if isinstance(channels, bytes) or not isinstance(channels, Iterable):
        raise TypeError(f"channels must be a str or an iterable of str, not {channels!r:.100}")
    return tuple(dict.fromkeys(check_channel(c) for c in channels))


def check_id(id: object) -> Hashable:
    """Return `id` where it can be a key."""
    try:
        hash(id)
    except TypeError:
        raise TypeError(f"a subscriber id must be hashable, not {type(id).__name__}: {id!r:.100}") from None
    return id


def check_seconds(name: str, value: object) -> float:
    """Return `value` where it is a number of seconds, of either sign."""
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        raise ValueError(f"{name} must be a number of seconds, not {value!r:.100}")
    return float(value)


def check_dbconf(dbconf: object) -> None:
    # Its value may hold a password, so no text shows it.
    if not (isinstance(dbconf, str | Mapping) or callable(dbconf)):
        kind = type(dbconf).__name__
        raise TypeError(f"dbconf must be a str, a mapping or a callable that returns one, not {kind}")


def check_options(
    decode: object, workers: object, max_pending: object, heartbeat: object, retry_delay: Any
) -> tuple[float | None, tuple[float, float]]:
    """Check a notifier's options; return `heartbeat` and `retry_delay` as floats."""
    if not callable(decode):
        raise TypeError(f"decode must be callable, not {decode!r:.100}")
    for name, number in (("workers", workers), ("max_pending", max_pending)):
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} must be an int of at least 1, not {number!r:.100}")
    if heartbeat is not None:
        heartbeat = check_seconds("heartbeat", heartbeat)
        if heartbeat <= 0:
            raise ValueError(f"heartbeat must be more than 0 seconds, or None, not {heartbeat!r}")
    try:
        least, most = retry_delay
    except (TypeError, ValueError):
        raise ValueError(f"retry_delay must be two numbers of seconds, not {retry_delay!r:.100}") from None
    least, most = check_seconds("retry_delay[0]", least), check_seconds("retry_delay[1]", most)
    if not 0 <= least <= most < math.inf:
        raise ValueError(f"retry_delay must be 0 <= least <= most, not {retry_delay!r:.100}")
    return heartbeat, (least, most)


def make_subscription(
    fn: Callback, on_listen: OnListen | None, deliver: str, loop: asyncio.AbstractEventLoop | None
) -> Subscription:
    """What `subscribe` was given, with the event loop that its coroutine functions run on."""
    if not callable(fn):
        raise TypeError(f"a callback must be callable, not {fn!r:.100}")
    if on_listen is not None and not callable(on_listen):
        raise TypeError(f"on_listen must be callable, not {on_listen!r:.100}")
    if deliver not in ("all", "latest"):
        raise ValueError(f"deliver must be 'all' or 'latest', not {deliver!r:.100}")
    if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
        raise TypeError(f"loop must be an event loop, not {loop!r:.100}")
    awaits, tells_by_awaiting = _is_coroutine_function(fn), _is_coroutine_function(on_listen)
    if loop is None and (awaits or tells_by_awaiting):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            which: Callable[..., Any] | None = fn if awaits else on_listen
            raise TypeError(
                f"{which!r:.100} is a coroutine function, and no event loop is running here: give one as loop="
            ) from None
    return Subscription(fn, False, on_listen, deliver == "latest", loop, awaits, tells_by_awaiting)


def _is_coroutine_function(f: object) -> bool:
    """Whether calling `f` gives a coroutine: an `async def`, a partial of one, or an object whose call is one."""
    if f is None or (type(f) is FunctionType and not f.__code__.co_flags & inspect.CO_COROUTINE and not f.__dict__):
        return False  # most are this; what is below takes longer than all other checks together
    return inspect.iscoroutinefunction(f) or inspect.iscoroutinefunction(getattr(f, "__call__", None))  # noqa: B004
