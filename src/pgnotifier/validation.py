"""Checks of users' arguments, before anything changes (guarantee 12): each error names the value and the limit."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache, partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, cast

from .errors import InvalidChannel, shown
from .flag import LONGEST
from .registry import Keyed, Subscription
from .types import Callback, DbConf, OnListen, Url

MAX_CHANNEL_BYTES = 63


def check_channel(name: object) -> str:
    """Return the characters of `name` if PostgreSQL can hold them exactly as given (guarantee 12)."""
    if not issubclass(type(name), str):
        raise TypeError(f"a channel name must be a str, not {type(name).__name__}: {shown(name)}")
    text = str.__str__(name)  # a subclass may override __str__, as an enum does
    if not text:
        raise InvalidChannel("a channel name must not be empty: ''")
    if "\0" in text:
        raise InvalidChannel(f"a channel name must not hold NUL: {shown(text)}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidChannel(f"a channel name must not hold a lone surrogate: {shown(text)}") from None
    if size > MAX_CHANNEL_BYTES:
        raise InvalidChannel(
            f"a channel name must be at most {MAX_CHANNEL_BYTES} bytes in UTF-8, not {size}: {shown(text)}"
        )
    return text


def check_channels(channels: object) -> tuple[str, ...]:
    """Return the names as a tuple without repetitions: one `str`, or an iterable of `str`."""
    if issubclass(type(channels), str):
        return (check_channel(channels),)
    if isinstance(channels, bytes) or not isinstance(channels, Iterable):
        raise TypeError(f"channels must be a str or an iterable of str, not {shown(channels)}")
    return tuple(dict.fromkeys(check_channel(c) for c in channels))


def check_id(id: object) -> Hashable:
    """Return `id` if it can be a dict key; of a stream, its id in the registry."""
    if isinstance(id, Keyed):
        return id.key
    try:
        hash(id)
    except Exception:
        raise TypeError(f"a subscriber id must be hashable, not {type(id).__name__}: {shown(id)}") from None
    try:
        itself = bool(id == id)
    except Exception:
        itself = False
    if not itself:
        raise TypeError(f"a subscriber id must be equal to itself, not {type(id).__name__}: {shown(id)}")
    return id


def check_seconds(name: str, value: object) -> float:
    """Return `value` if it is a number of seconds, of either sign; infinity if it is too large for a float."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf if value > 0 else -math.inf
        if not math.isnan(seconds):
            return seconds
    raise ValueError(f"{name} must be a number of seconds, not {shown(value)}")


def check_timeout(timeout: object, name: str = "timeout") -> float:
    """Return seconds to wait, from 0 to `LONGEST`: no clock can measure more."""
    return min(max(check_seconds(name, timeout), 0.0), LONGEST)


def check_dbconf(dbconf: object) -> DbConf:
    """Return `dbconf`; a mapping is copied, so that later changes of it don't count."""
    # The value may hold a password, so no error shows it.
    if not (isinstance(dbconf, str | Mapping | Url) or callable(dbconf)):
        kind = type(dbconf).__name__
        raise TypeError(f"dbconf must be a str, a mapping or a callable that returns one, not {kind}")
    return dict(dbconf) if isinstance(dbconf, Mapping) and not callable(dbconf) else cast(DbConf, dbconf)


def check_options(
    decode: object, workers: object, max_pending: object, heartbeat: object, retry_delay: Any
) -> tuple[float | None, tuple[float, float]]:
    """Check a notifier's options; return `heartbeat` (None if it is over `LONGEST`) and `retry_delay` as floats."""
    if not callable(decode):
        raise TypeError(f"decode must be callable, not {shown(decode)}")
    for name, number in (("workers", workers), ("max_pending", max_pending)):
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} must be an int of at least 1, not {shown(number)}")
    seconds: float | None = None
    if heartbeat is not None:
        seconds = check_seconds("heartbeat", heartbeat)
        if seconds <= 0:
            raise ValueError(f"heartbeat must be more than 0 seconds, or None, not {shown(heartbeat)}")
        if seconds > LONGEST:
            seconds = None
    try:
        least, most = retry_delay
    except Exception:
        raise ValueError(f"retry_delay must be two numbers of seconds, not {shown(retry_delay)}") from None
    least, most = check_seconds("retry_delay[0]", least), check_seconds("retry_delay[1]", most)
    if not 0 <= least <= most <= LONGEST:
        raise ValueError(
            f"retry_delay must be 0 <= least <= most <= {LONGEST:,.0f} seconds, not {shown(retry_delay)}"
        )
    return seconds, (least, most)


def check_deliver(deliver: object) -> None:
    if deliver not in ("all", "latest"):
        raise ValueError(f"deliver must be 'all' or 'latest', not {shown(deliver)}")


def make_subscription(
    fn: Callback, on_listen: OnListen | None, deliver: str, loop: asyncio.AbstractEventLoop | None
) -> Subscription:
    """Return the checked arguments of `subscribe`, with the event loop that its coroutine functions run on."""
    check_callback("a callback", fn, ("id", "channel", "payload", "pid"))
    if on_listen is not None:
        check_callback("on_listen", on_listen, ("id", "channel", "gap"))
    check_deliver(deliver)
    if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
        raise TypeError(f"loop must be an event loop, not {shown(loop)}")
    awaits = runs(fn, inspect.iscoroutinefunction)
    tells_by_awaiting = runs(on_listen, inspect.iscoroutinefunction)
    if loop is None and (awaits or tells_by_awaiting):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            which: Callable[..., Any] | None = fn if awaits else on_listen
            raise TypeError(
                f"{shown(which)} is a coroutine function, and no event loop is running here: give one as loop="
            ) from None
    return Subscription(fn, False, on_listen, deliver == "latest", loop, awaits, tells_by_awaiting)


def check_callback(role: str, f: object, arguments: tuple[str, ...]) -> None:
    """Raise TypeError if `f` cannot be called with these arguments, or if a call would not run its body."""
    if not callable(f):
        raise TypeError(f"{role} must be callable, not {shown(f)}")
    if runs(f, inspect.isgeneratorfunction) or runs(f, inspect.isasyncgenfunction):
        raise TypeError(f"{role} must not be a generator function, because a call does not run its body: {shown(f)}")
    lasting = isinstance(f, BuiltinFunctionType) and isinstance(f.__self__, ModuleType)  # such as `print`
    try:
        signature = _signature(f) if lasting else _signature.__wrapped__(f)
    except Exception:
        return  # Python does not know its signature
    try:
        signature.bind(*arguments)
    except TypeError:
        raise TypeError(
            f"{role} is called with {len(arguments)} positional arguments ({', '.join(arguments)}), "
            f"which this one does not take: {shown(f)}"
        ) from None


@lru_cache(maxsize=100)
def _signature(f: Callable[..., object]) -> inspect.Signature:
    return inspect.signature(f, follow_wrapped=False)  # the wrapper is called


def runs(f: object, kind: Callable[[Any], bool]) -> bool:
    """Return True if calling `f` runs a function of that kind: `f`, the function of a partial, or a `__call__`."""
    while isinstance(f, partial):
        f = f.func
    return kind(f) or (not isinstance(f, type | FunctionType) and kind(getattr(f, "__call__", None)))  # noqa: B004
