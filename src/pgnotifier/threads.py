"""Starting and joining threads, although Ctrl-C may come at any moment."""

from __future__ import annotations

import contextlib
import threading


class Relied(threading.Thread):
    """A thread that others wait for. Code that runs on it must not wait for them."""


def start(thread: threading.Thread) -> None:
    """Start a thread. Raises the error that prevents it; after `KeyboardInterrupt` it may run, or begin to later."""
    try:
        thread.start()
    except RuntimeError as error:
        # `Thread.start` waits on a condition, which turns an interrupt in it into "release unlocked lock".
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise


def join(thread: threading.Thread | None, timeout: float) -> None:
    """Wait for a started thread's end, at most `timeout` seconds. Ignore None and the current thread."""
    if thread is not None:
        with contextlib.suppress(RuntimeError):
            thread.join(timeout)
