"""Waiting for another thread, a signal handler or a finalizer; `threading.Event` would hang there.

Waiting and waking threads share no lock, so a wake-up may interrupt a wait in the same thread.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from math import inf
from threading import get_ident, main_thread
from time import monotonic
from typing import Any

LONGEST = 1_000_000.0  # seconds that anything waits, eleven days: `poll` takes no more than 2**31 milliseconds

# If a signal comes just before a blocking call, CPython runs its handler only after that call returns. So the
# main thread waits in slices: short at first, up to 30 s later.
FIRST_SLICE, LONGEST_SLICE = 0.01, 30.0  # seconds


class Bell:
    """Wakes all threads that wait for a condition."""

    def __init__(self) -> None:
        self._waiters: list[Any] = []

    @property
    def is_watched(self) -> bool:
        """True if a thread waits."""
        return bool(self._waiters)

    def watch(self, waker: Any) -> None:
        """Call `waker.release()` at each ring, on the thread that rings, until `unwatch(waker)`."""
        self._waiters.append(waker)

    def unwatch(self, waker: Any) -> None:
        self._waiters.remove(waker)

    def ring(self) -> None:
        """Wake every waiting thread, to check its condition. Any thread, also in a signal handler."""
        for waiter in tuple(self._waiters):
            try:
                waiter.release()
            except RuntimeError:
                pass  # it is awake already, or its event loop is closed

    def wait_for(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """Block until `condition()` is true, at most `timeout` seconds; return True if it is."""
        waiter = allocate_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        try:
            seconds = FIRST_SLICE if get_ident() == main_thread().ident else LONGEST_SLICE
            deadline = inf if timeout is None else monotonic() + timeout
            while not condition():
                left = deadline - monotonic()
                if left <= 0:
                    return False
                waiter.acquire(timeout=min(seconds, left))
                seconds = min(2 * seconds, LONGEST_SLICE)
            return True
        finally:
            self._waiters.remove(waiter)


class Flag(Bell):
    """A condition that is true from `set()` until `clear()`."""

    def __init__(self, value: bool = False) -> None:
        super().__init__()
        self._value = value

    def set(self) -> None:
        self._value = True
        self.ring()

    def clear(self) -> None:
        self._value = False

    def is_set(self) -> bool:
        return self._value

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, at most `timeout` seconds; return True if it is."""
        return self.wait_for(self.is_set, timeout)
