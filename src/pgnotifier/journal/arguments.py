"""Checks of what users pass to a journal. Pure."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from ..errors import shown
from ..payload import encode

LONGEST_NAME = 200  # bytes
GREATEST_BATCH = 100_000


def check_text(payload: object) -> str:
    """What stands in the table: a str as it is, anything else encoded. Raises `TypeError`, `ValueError`."""
    text = str.__str__(payload) if issubclass(type(payload), str) else encode(payload)
    if "\0" in text:
        raise ValueError(f"a payload must not hold NUL: {text!r:.100}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a payload must not hold a lone surrogate: {text!r:.100}") from None
    return text


def check_age(name: str, age: object) -> timedelta:
    if not isinstance(age, timedelta) or age < timedelta(0):
        raise ValueError(f"{name} must be a timedelta of at least 0, not {shown(age)}")
    return age


def check_consumer(name: object, start: object, batch: object, on_error: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a consumer's name must be a str, not {shown(name)}")
    if not name or "\0" in name or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ValueError(
            f"a consumer's name must have 1 to {LONGEST_NAME} bytes in UTF-8, and no NUL, not {shown(name)}"
        )
    if start not in ("now", "beginning"):
        raise ValueError(f"start must be 'now' or 'beginning', not {shown(start)}")
    if type(batch) is not int or not 1 <= batch <= GREATEST_BATCH:
        raise ValueError(f"batch must be an int from 1 to {GREATEST_BATCH:,}, not {shown(batch)}")
    if on_error not in ("retry", "skip") and not callable(on_error):
        raise ValueError(f"on_error must be 'retry', 'skip' or callable, not {shown(on_error)}")


def loop_for(fn: object, on_gap: object) -> asyncio.AbstractEventLoop | None:
    """The event loop that runs here if `fn` is a coroutine function. Raises `TypeError`."""
    for what, function, names in (("fn", fn, ("entry", "conn")), ("on_gap", on_gap, ("name", "channel", "gap"))):
        if function is None and what == "on_gap":
            continue
        if not callable(function):
            raise TypeError(f"{what} must be callable, not {shown(function)}")
        try:
            inspect.signature(function).bind(*names)
        except ValueError:
            pass  # Python does not know
        except TypeError:
            arguments = f"{len(names)} positional arguments ({', '.join(names)})"
            raise TypeError(
                f"{what} is called with {arguments}, which this one does not take: {shown(function)}"
            ) from None
    if not _is_coroutine_function(fn):
        if _is_coroutine_function(on_gap):
            raise TypeError("on_gap may be a coroutine function only where fn is one")
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise TypeError(f"{shown(fn)} is a coroutine function, and no event loop is running here") from None


def _is_coroutine_function(f: Any) -> bool:
    while isinstance(f, partial):
        f = f.func
    called: Callable[..., Any] | None = getattr(f, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(f) or inspect.iscoroutinefunction(called)
