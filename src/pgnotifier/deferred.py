"""Calls in signal handlers and finalizers, which may interrupt a thread that must not wait (guarantee 11)."""

from __future__ import annotations

import contextlib
import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable

from . import threads
from .log import ERROR, log
from .shared import Shared


class Deferred:
    """Queues calls for a `pgnotifier-change` thread, which makes them in order, without a lock of the notifier's."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._calls: deque[Callable[[], object]] = deque()
        self._lock = allocate_lock()

    def take(self, call: Callable[[], object]) -> bool:
        """Queue `call` if the current thread must not wait for it; return True if so.

        A thread must not wait while it holds the state lock. A listener thread, of any notifier, never may.
        """
        if not (self._shared.lock._is_owned() or self._on_listener()):
            return False
        self._calls.append(call)
        try:
            threads.start(threading.Thread(target=self._catch_up, name="pgnotifier-change", daemon=True))
        except BaseException:
            with contextlib.suppress(ValueError):
                self._calls.remove(call)
            raise
        return True

    def _on_listener(self) -> bool:
        life = self._shared.life
        newest = None if life is None else life.listener
        if newest is not None and newest.ident == threading.get_ident():
            return True
        thread = threading.current_thread()
        if isinstance(thread, threads.Relied):
            return True
        # A finalizer may run in a thread's first instructions, before Python has registered it.
        return newest is not None and newest.ident is None and isinstance(thread, threading._DummyThread)

    def _catch_up(self) -> None:
        with self._lock:
            while self._calls:
                try:
                    self._calls.popleft()()
                except Exception as error:
                    log(ERROR, "a change that interrupted another failed", error=error)
