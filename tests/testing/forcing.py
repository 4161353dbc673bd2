"""Where a test has a thread wait, another thread call, or Ctrl-C come: found by name, and reached for certain."""

from __future__ import annotations

import linecache
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pgnotifier.delivery
from conftest import until
from pgnotifier import Gap
from pgnotifier.connection import Session
from pgnotifier.testing import MemoryNotifier

SECONDS = 5  # that anything may take that has to happen
MOST = 1000  # places in one call
_DELIVERY = str(Path(pgnotifier.delivery.__file__).parent)


class Log(list[Any]):
    """Payloads, or gaps, as they come."""

    def heard(self, id: Any, channel: str, payload: Any, pid: int) -> None:
        self.append(payload)

    def told(self, id: Any, channel: str, gap: Gap | None) -> None:
        self.append(gap)


class Stall:
    """The first thread that calls this waits there until it is to `end`."""

    def __init__(self) -> None:
        self.here, self._go = threading.Event(), threading.Event()
        self._thread = threading.current_thread()

    def __call__(self, *_: Any) -> None:
        if not self.here.is_set():
            self._thread = threading.current_thread()
            self.here.set()
            self._go.wait(4 * SECONDS)

    def go(self) -> None:
        self._go.set()

    def end(self) -> None:
        """Have it go on, and wait for the thread's end."""
        self._go.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()


class Other(threading.Thread):
    """A thread that makes a call; `returned` when that has returned."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call, self.returned = call, threading.Event()

    def run(self) -> None:
        self._call()
        self.returned.set()

    def begin(self, n: MemoryNotifier) -> None:
        """Start it while the listener makes a change; returns when its call has returned, or waits behind that."""
        life = n._supervisor.shared.life
        assert life is not None
        self.start()
        until(lambda: self.returned.is_set() or len(life.requests) > 1, SECONDS)


@contextmanager
def on_refusal(do: Callable[[str], object]) -> Iterator[None]:
    """Have a listener thread call `do` with the text when it logs that a channel is refused."""

    def heed(record: logging.LogRecord) -> bool:
        if "refuses" in record.getMessage() and threading.current_thread().name == "pgnotifier-listener":
            do(record.getMessage())
        return True

    logger = logging.getLogger("pgnotifier")
    logger.addFilter(heed)
    try:
        yield
    finally:
        logger.removeFilter(heed)


@contextmanager
def around_listen(
    patch: pytest.MonkeyPatch,
    add: list[str],
    remove: list[str],
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Have a listener thread make calls before and after it has the server change from `remove` to `add`, once."""
    listen, left = Session.listen, [1]

    def patched(self: Session, wanted: Any, unwanted: Any = (), *args: Any) -> None:
        chosen = left and (list(wanted), list(unwanted)) == (add, remove) and left.pop()
        if chosen:
            before()
        listen(self, wanted, unwanted, *args)
        if chosen:
            after()

    with patch.context() as context:
        context.setattr(Session, "listen", patched)
        yield
    assert not left, "the place was not reached"


class CtrlC:
    """KeyboardInterrupt before the `place`-th line of `pgnotifier.delivery` that calls in the block come to.

    None comes between the end of a `with` block and its exit: lines with a `with` do not count.
    """

    def __init__(self, place: int) -> None:
        self.left = place

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_DELIVERY):
            return None
        if event == "line" and not linecache.getline(file, frame.f_lineno).lstrip().startswith("with "):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._trace

    @contextmanager
    def block(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)


def at_every_place(trial: Callable[[CtrlC], None]) -> None:
    """Repeat a trial, with Ctrl-C one place further each time, until its block comes to no such place any more."""
    for place in range(1, MOST):
        ctrl_c = CtrlC(place)
        try:
            trial(ctrl_c)
        except Exception as error:
            raise AssertionError(f"after Ctrl-C at place {place}") from error
        if ctrl_c.left > 0:
            assert place > 10, "there was nothing to interrupt"
            return
    raise AssertionError("it does not end")
