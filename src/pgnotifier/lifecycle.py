"""Stops notifiers at the interpreter's end, and tells them of forks (guarantee 11)."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from time import monotonic
from typing import Any
from weakref import WeakSet

CALLS_TIME = 0.5  # seconds that running callbacks of all notifiers have to finish at the interpreter's end

_alive: WeakSet[Any] = WeakSet()
_forking: WeakSet[Any] = WeakSet()


def watch(notifier: Any) -> None:
    """Stop `notifier` at the interpreter's end, and tell it of forks."""
    _alive.add(notifier)
    watch_forks(notifier)


def watch_forks(notifier: Any) -> None:
    """Call `notifier._forked()` in forked children."""
    _forking.add(notifier)


def _at_exit() -> None:
    # Runs after the wait for non-daemon threads; all of ours are daemons, so it runs when the main thread ends.
    try:
        for notifier in list(_alive):
            if not notifier.daemon and getattr(sys, "last_type", None) is not KeyboardInterrupt:
                notifier.wait()
    except KeyboardInterrupt:
        pass
    deadline = monotonic() + CALLS_TIME
    for notifier in list(_alive):
        with contextlib.suppress(KeyboardInterrupt, Exception):
            notifier.stop(timeout=max(0.0, deadline - monotonic()))


def _in_child() -> None:
    for notifier in list(_forking):
        notifier._forked()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
