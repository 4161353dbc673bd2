"""An event that a signal handler may set while the thread it interrupted waits; `threading.Event` hangs then."""

from __future__ import annotations

from _thread import allocate_lock
from typing import Any


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
            if not self._value:
                waiter.acquire(timeout=-1 if timeout is None else max(0.0, min(timeout, 1e6)))
            return self._value
        finally:
            self._waiters.remove(waiter)
