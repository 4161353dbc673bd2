"""The queue of mailboxes that are ready, and the workers that wait for one.

A mailbox stands in the queue once, and is handled by one worker or event loop at a time, as `mailbox.NEXT` says.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ..flag import Bell
from .coverage import ListenCall
from .mailbox import IDLE, PAUSED, READY, RUNNING, Mailbox
from .runs import Entry


class Worker:
    """A worker between two turns: what has become of the last one, and the lock that wakes it."""

    def __init__(self) -> None:
        self.waiter = allocate_lock()
        self.waiter.acquire()
        self.box: Mailbox | None = None
        self.until = 0.0  # seconds of `perf_counter`, until which it may stay with a mailbox
        self.stays = False  # the next turn may be of the same mailbox
        self.delivered = 0  # calls that ended well
        self.failed: ListenCall | None = None  # the call of `on_listen` that raised


class Turns:
    """Everything is under `lock`, the dispatcher's, but for what says otherwise.

    `delay(attempt)`: how many seconds a failed `on_listen` waits until it is called again. `void(mailbox, call)`
    takes back a call of `on_listen` that failed when its subscription was muted or gone. `empty(mailbox)` follows a
    turn that left nothing, and may be called for a mailbox that is still subscribed. `after(mailbox)` follows a turn
    that somebody waits for, without the lock.
    """

    def __init__(
        self,
        lock: Any,
        delay: Callable[[int], float],
        void: Callable[[Mailbox, ListenCall], None],
        empty: Callable[[Mailbox], None],
        after: Callable[[Mailbox], None],
    ) -> None:
        self.lock, self._delay, self._void, self._empty, self._after = lock, delay, void, empty, after
        self.running: bool = False
        self.orphaned: bool = False  # an event loop that has a mailbox was closed
        self.reclaim: Callable[[], None] = lambda: None  # take such mailboxes back; the workers set it
        self.delivered: int = 0
        self.bell: Bell = Bell()  # rung after every turn, and when a worker ends
        self._queue: deque[Mailbox] = deque()
        self._paused: list[Mailbox] = []
        self._idle: list[Any] = []  # for each idle worker the lock that wakes it

    def add(self, box: Mailbox) -> None:
        """Something was put into the mailbox: have it stand in the queue."""
        if box.state is IDLE:
            self._queue.append(box)  # first: an interrupted thread may leave it here twice, but never out of it
            box.state = READY
        elif box.batch is not None and box.batch.loop.is_closed():
            self.orphaned = True

    def resume(self, box: Mailbox) -> None:
        """A failed on_listen is called again now, or not at all."""
        box.attempt = box.attempt if box.entries else 0
        self._paused.remove(box)
        self._queue.append(box)
        box.to(READY)

    def begin(self, boxes: list[Mailbox]) -> None:
        """Workers find work from now on; make good what an interrupted `stop` or change left behind."""
        self.running = True
        self._queue.clear()
        self._paused.clear()
        for box in boxes:
            box.waiting = sum(0 if isinstance(e, ListenCall) else e.stop - e.start for e in box.entries)
            if box.state in (IDLE, READY, PAUSED):
                box.state = IDLE  # whatever it was: this is no transition
                if box.entries:
                    self.add(box)

    def clear(self) -> None:
        """In a forked child, whose only thread may be a worker: leave it nothing to do."""
        self.running = False
        self._queue.clear()
        self._paused.clear()

    def wake(self) -> None:
        """Wake as many idle workers as mailboxes are ready; all when they have to end. Without the lock."""
        if self.orphaned and not self.lock._is_owned():  # otherwise the next one sees to it
            self.orphaned = False
            self.reclaim()
        count = min(len(self._queue), len(self._idle)) if self.running else len(self._idle)
        for waiter in reversed(tuple(self._idle)):  # they leave the list themselves: Ctrl-C here loses none
            if count > 0:
                count -= _release(waiter)

    def next(self, worker: Worker) -> tuple[Mailbox, Entry] | None:
        """End the worker's turn, and wait for the next one; None where it has to end. Without the lock."""
        while True:
            box, worker.box = worker.box, None  # while it waits, a worker keeps nothing alive
            seconds = -1.0
            with self.lock:
                self.delivered += worker.delivered
                found: tuple[Mailbox, Entry] | None = None
                if box is not None:
                    if worker.stays and box.entries and worker.failed is None:
                        if type(box.hand) is ListenCall:
                            box.attempt = 0
                        box.done()
                        if box.take():
                            found = box, box.hand  # type: ignore[assignment]
                    if found is None:
                        self._end(box, worker.failed)
                    if box.rate.is_measured and box.has_room:
                        box.rate.end(monotonic(), box.taken)
                worker.delivered, worker.failed = 0, None
                if found is None:
                    worker.until, found = 0.0, self._take()
                if found is None:
                    if not self.running:
                        return None
                    self._idle.append(worker.waiter)
                    if self._paused:
                        seconds = max(0.0, min(b.resume_at for b in self._paused) - monotonic())
            if box is not None and (box.blocking or box.unannounced or self.bell.is_watched):
                self._after(box)
            if found is not None:
                return found
            box = None
            worker.waiter.acquire(timeout=seconds)
            with self.lock:
                self._idle.remove(worker.waiter)

    def release(self, box: Mailbox, failed: ListenCall | None = None) -> None:
        """End the turn of a mailbox on an event loop. Without the lock."""
        with self.lock:
            self._end(box, failed)
            if box.has_room:
                box.rate.end(monotonic(), box.taken)
        self.wake()
        self._after(box)

    def _end(self, box: Mailbox, failed: ListenCall | None) -> None:
        if not box.entries and failed is None and type(box.hand) is not ListenCall:  # as it mostly is
            box.hand = box.sub = None
            box.held, box.state = 0, IDLE
            if not box.subs:
                self._empty(box)
            return
        if failed is not None and box.hand is failed:
            box.put_back(failed)
            box.attempt += 1
            box.resume_at = monotonic() + self._delay(box.attempt)
            box.to(PAUSED)
            self._paused.append(box)
            if self._idle:
                _release(self._idle[-1])  # a worker has to wait no longer than until then
            return
        if failed is not None:
            self._void(box, failed)
        elif type(box.hand) is ListenCall:
            box.attempt = 0
        box.done()
        box.to(READY if box.entries else IDLE)
        if box.entries:
            self._queue.append(box)
        else:
            self._empty(box)

    def _take(self) -> tuple[Mailbox, Entry] | None:
        if self._paused:
            moment = monotonic()
            for box in [b for b in self._paused if b.resume_at <= moment]:
                self.resume(box)
        while self._queue:
            box = self._queue.popleft()
            if box.state is not READY:
                continue
            if box.take() and box.hand is not None:
                box.state = RUNNING
                return box, box.hand
            box.to(IDLE)
            self._empty(box)
        return None


def _release(waiter: Any) -> bool:
    """Wake the worker that waits with this lock; False where it is awake already."""
    try:
        waiter.release()
    except RuntimeError:
        return False
    return True
