"""An event that a signal handler may set while the thread it interrupted waits; `threading.Event` hangs then."""

from __future__ import annotations

from _thread import allocate_lock
from math import inf
from time import monotonic
from typing import Any

# A signal that comes just before a thread blocks is seen when it returns: soon where the wait has just begun, for a
# signal may be an answer to what came before; later there is hardly one in so short a moment.
SOON, LATEST = 0.01, 30.0  # seconds


class Flag:
    def __init__(self, value: bool) -> None:
        self._value = value
        self._waiters: list[Any] = []

    def set(self) -> None:
        self._value = True
        for waiter in tuple(self._waiters):
            try:
                waiter.release()
            except RuntimeError:
                pass  # released by another thread

    def clear(self) -> None:
        self._value = False

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it is set, for `timeout` seconds at most; whether it is."""
        waiter = allocate_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        try:
            seconds, deadline = SOON, inf if timeout is None else monotonic() + timeout
            while not self._value and (left := deadline - monotonic()) > 0:
                waiter.acquire(timeout=min(seconds, left))
                seconds = min(2 * seconds, LATEST)
            return self._value
        finally:
            self._waiters.remove(waiter)
