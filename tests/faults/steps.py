"""Faults between two lines of the library: at the k-th line that its threads come to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pgnotifier

SOURCE = Path(pgnotifier.__file__).parent
FILES = {
    str(SOURCE / name)
    for name in (
        "listener.py",
        "connection/lifetime.py",
        "connection/session.py",
        "connection/exchange.py",
        "connection/waiting.py",
        "shared.py",
        "supervisor.py",
    )
}
LISTENER, CALLER = "pgnotifier-listener", "caller"


class Steps:
    """Counts the lines that listener threads, and the thread that calls, run in `FILES` while it is armed.

    The thread that comes to line `at` makes the fault before it goes on; the others go on meanwhile. A new thread is
    traced where this is entered before it starts.
    """

    def __init__(self) -> None:
        self.fault: Callable[[], None] = lambda: None
        self.error: BaseException | None = None
        self.place: str | None = None  # where the fault was made
        self.count = 0
        self._at = 0
        self._armed = False
        self._counter = count(1)

    def __enter__(self) -> Steps:
        threading.settrace(self._trace)
        return self

    def __exit__(self, *exc: object) -> None:
        threading.settrace(None)  # type: ignore[arg-type]
        self._armed = False

    def arm(self, at: int, fault: Callable[[], None]) -> None:
        self.fault, self.error, self.place, self.count = fault, None, None, 0
        self._at, self._counter, self._armed = at, count(1), True

    def disarm(self) -> bool:
        """Returns whether the fault was made. Raises what went wrong in it."""
        self._armed = False
        if self.error is not None:
            raise self.error
        return self.place is not None

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename in FILES and threading.current_thread().name in (LISTENER, CALLER):
            return self._line
        return None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and self._armed:
            number = next(self._counter)
            self.count = max(self.count, number)
            if number == self._at:
                self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                try:
                    self.fault()
                except BaseException as error:
                    self.error = error
        return self._line
