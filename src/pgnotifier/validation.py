"""Checks of what users pass, before anything is touched (guarantee 12): each text names the value and the limit."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from .errors import InvalidChannel, shown
from .flag import LONGEST
from .registry import Subscription
from .types import Callback, DbConf, OnListen

MAX_CHANNEL_BYTES = 63


def check_channel(name: object) -> str:
    """Return the characters of `name` if PostgreSQL can hold them exactly as given (guarantee 12)."""
    if not issubclass(type(name), str):
        raise TypeError(f"a channel name must be a str, not {type(name).__name__}: {shown(name)}")
    text = str.__str__(name)  # a subclass may say otherwise of itself, as an enum does
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
    """Return `id` if it can be a key."""
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


def check_timeout(timeout: object) -> float:
    """Return how long to wait at most; what no clock can measure counts as `LONGEST`."""
    return min(max(check_seconds("timeout", timeout), 0.0), LONGEST)


def check_dbconf(dbconf: object) -> DbConf:
    """Return `dbconf`, copied if it is a mapping: what its owner changes later must not count."""
    # Its value may hold a password, so no text shows it.
    if not (isinstance(dbconf, str | Mapping) or callable(dbconf)):
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
    """What `subscribe` was given, with the event loop that its coroutine functions run on."""
    _check_callback("a callback", fn, ("id", "channel", "payload", "pid"))
    if on_listen is not None:
        _check_callback("on_listen", on_listen, ("id", "channel", "gap"))
    check_deliver(deliver)
    if loop is not None and not isinstance(loop, asyncio.AbstractEventLoop):
        raise TypeError(f"loop must be an event loop, not {shown(loop)}")
    awaits, tells_by_awaiting = _is_coroutine_function(fn), _is_coroutine_function(on_listen)
    if loop is None and (awaits or tells_by_awaiting):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            which: Callable[..., Any] | None = fn if awaits else on_listen
            raise TypeError(
                f"{shown(which)} is a coroutine function, and no event loop is running here: give one as loop="
            ) from None
    return Subscription(fn, False, on_listen, deliver == "latest", loop, awaits, tells_by_awaiting)


_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def _check_callback(what: str, f: object, arguments: tuple[str, ...]) -> None:
    """Raise TypeError if `f` cannot be called with these arguments, or if a call would not run its body."""
    if not callable(f):
        raise TypeError(f"{what} must be callable, not {shown(f)}")
    function = _function(f)
    if function is not None and function.__code__.co_flags & _GENERATOR:
        raise TypeError(f"{what} must not be a generator function, because a call does not run its body: {shown(f)}")
    if not _takes(f, len(arguments)):
        raise TypeError(
            f"{what} is called with {len(arguments)} positional arguments ({', '.join(arguments)}), "
            f"which this one does not take: {shown(f)}"
        )


def _function(f: object) -> FunctionType | None:
    """The Python function that a call of `f` runs: through partials, methods and objects; None if there is none."""
    for _ in range(100):  # nobody nests so deep
        if isinstance(f, FunctionType):
            return f
        if isinstance(f, partial):
            f = f.func
        elif isinstance(f, MethodType):
            f = f.__func__
        else:
            f = None if isinstance(f, type) else getattr(f, "__call__", None)  # noqa: B004
            if not isinstance(f, FunctionType | MethodType | partial):
                return None
    return None


def _takes(f: Callable[..., object], count: int) -> bool:
    """Whether `f` can be called with so many positional arguments, as far as Python knows."""
    function: object = f
    if type(f) is MethodType:
        function, count = f.__func__, count + 1
    if type(function) is FunctionType:  # most are: `inspect` takes longer than all other checks together
        code = function.__code__
        most = math.inf if code.co_flags & inspect.CO_VARARGS else code.co_argcount
        least = code.co_argcount - len(function.__defaults__ or ())
        return least <= count <= most and code.co_kwonlyargcount <= len(function.__kwdefaults__ or ())
    if type(f) is BuiltinFunctionType and isinstance(f.__self__, ModuleType):
        return _binds_once(f, count)
    return _binds(f, count)


def _binds(f: Callable[..., object], count: int) -> bool:
    try:
        signature = inspect.signature(f, follow_wrapped=False)  # what is called is the wrapper
    except Exception:
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


_binds_once = lru_cache(maxsize=100)(_binds)  # for a module's own functions, such as `print`: they live for ever


def _is_coroutine_function(f: object) -> bool:
    """Whether calling `f` gives a coroutine: an `async def`, a partial of one, or an object whose call is one."""
    if f is None or (type(f) is FunctionType and not f.__code__.co_flags & inspect.CO_COROUTINE and not f.__dict__):
        return False  # most are this; what is below takes longer than all other checks together
    return inspect.iscoroutinefunction(f) or inspect.iscoroutinefunction(getattr(f, "__call__", None))  # noqa: B004
