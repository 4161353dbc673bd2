"""Checks of users' arguments to a journal. Pure."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from ..errors import shown
from ..validation import check_callback, runs

LONGEST_NAME = 200  # bytes
GREATEST_BATCH = 100_000


def check_age(name: str, age: object) -> timedelta:
    if not isinstance(age, timedelta) or age < timedelta(0):
        raise ValueError(f"{name} must be a timedelta of at least 0, not {shown(age)}")
    return age


def check_consumer(name: object, start: object, batch: object, on_error: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a consumer's name must be a str, not {shown(name)}")
    if not name or "\0" in name or len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ValueError(f"a consumer's name must have 1 to {LONGEST_NAME} bytes and no NUL, not {shown(name)}")
    if start not in ("now", "beginning"):
        raise ValueError(f"start must be 'now' or 'beginning', not {shown(start)}")
    if type(batch) is not int or not 1 <= batch <= GREATEST_BATCH:
        raise ValueError(f"batch must be an int from 1 to {GREATEST_BATCH:,}, not {shown(batch)}")
    if on_error not in ("retry", "skip") and not callable(on_error):
        raise ValueError(f"on_error must be 'retry', 'skip' or callable, not {shown(on_error)}")


def loop_for(fn: Callable[..., Any], on_gap: Callable[..., Any] | None) -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs here, if `fn` is a coroutine function, else None. Raises `TypeError`."""
    check_callback("fn", fn, ("entry", "conn"))
    if on_gap is not None:
        check_callback("on_gap", on_gap, ("name", "channel", "gap"))
    if not runs(fn, inspect.iscoroutinefunction):
        if runs(on_gap, inspect.iscoroutinefunction):
            raise TypeError("on_gap may be a coroutine function only if fn is one")
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise TypeError(f"{shown(fn)} is a coroutine function, and no event loop is running here") from None
