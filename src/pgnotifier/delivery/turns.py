"""The queue of ready mailboxes. A turn is the time in which an executor handles a mailbox's hand.

A mailbox stands in the queue once, and one executor at a time handles it, as `states.NEXT` says. Every method runs
under the state lock, unless it says otherwise.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from ..flag import Bell
from .coverage import Coverage, ListenCall
from .mailbox import Mailbox, Owner
from .states import IDLE, PAUSED, PULLED, READY, RUNNING


@dataclass(slots=True, eq=False)
class Worker:
    """The state of a worker between turns: its mailboxes and results, and the lock that wakes it."""

    most: int = 1  # mailboxes that it takes at a time
    boxes: list[Mailbox] = field(default_factory=list)  # that it has
    box: Mailbox | None = None  # whose calls it makes now
    delivered: int = 0  # calls that returned
    waiter: Any = field(default_factory=allocate_lock)

    def __post_init__(self) -> None:
        self.waiter.acquire()


class Turns:
    """Gives mailboxes to workers. `delay(attempt)`: seconds until a failed `on_listen` is called again."""

    def __init__(self, lock: Any, coverage: Coverage, delay: Callable[[int], float]) -> None:
        self.lock, self._coverage, self._delay = lock, coverage, delay
        self.boxes: dict[Hashable, Mailbox] = {}
        self.running: bool = False
        self.delivered: int = 0
        self.bell: Bell = Bell()  # rung after turns, and when a worker ends
        self.idle: list[Any] = []  # for each idle worker the lock that wakes it
        self._queue: deque[Mailbox] = deque()
        self._paused: list[Mailbox] = []
        self._noticed: deque[Owner] = deque()  # owners to be told that something came

    def add(self, box: Mailbox) -> None:
        """Queue a mailbox that something was put into, or notify its owner."""
        if box.state is IDLE:
            self._queue.append(box)  # first: Ctrl-C in between can queue it twice, but not lose it
            box.state = READY
        elif box.owner is not None:
            self.notice(box.owner)

    def notice(self, owner: Owner) -> None:
        """Have `owner.notice()` called as soon as the lock is free."""
        if not self._noticed or self._noticed[-1] is not owner:
            self._noticed.append(owner)

    def resume(self, box: Mailbox) -> None:
        """Queue a paused mailbox, whose failed `on_listen` is due again or was thrown away."""
        box.attempt = box.attempt if box.entries else 0
        self._paused.remove(box)
        self._queue.append(box)
        box.to(READY)

    def begin(self) -> None:
        """Give workers work from now on. Repair what an interrupted `stop` or change left behind."""
        self.clear()
        self.running = True
        for box in self.boxes.values():
            box.waiting = sum(entry.size for entry in box.entries)
            box.latest = {name: run for name, run in box.latest.items() if any(run is entry for entry in box.entries)}
            if box.state in (IDLE, READY, PAUSED):
                box.state = IDLE  # set directly: a repair is no transition
                if box.entries:
                    self.add(box)

    def clear(self) -> None:
        """Leave workers nothing to do. In a forked child, the only thread may be a worker."""
        self.running = False
        self._queue.clear()
        self._paused.clear()

    def wake(self) -> None:
        """Wake as many idle workers as mailboxes are ready, all if they have to end; without the lock, owners too."""
        if self._noticed and not self.lock._is_owned():  # otherwise the next call does it
            noticed = deque[Owner]()
            try:
                with self.lock:
                    noticed, self._noticed = self._noticed, noticed
                while noticed:
                    noticed[0].notice()
                    noticed.popleft()
            finally:
                self._noticed.extend(noticed)  # none, except after Ctrl-C
        count = min(len(self._queue), len(self.idle)) if self.running else len(self.idle)
        for waiter in reversed(tuple(self.idle)):  # workers leave the list themselves: Ctrl-C here loses none
            if count > 0:
                count -= _release(waiter)

    def reclaim(self) -> None:
        """Take mailboxes back from event loops that are closed. Without the lock."""
        for box in tuple(self.boxes.values()):
            if (owner := box.owner) is not None:
                owner.notice()

    def exchange(self, worker: Worker) -> float | None:
        """End the worker's turns, and put the next ones into `worker.boxes`: none if it has to end.

        Returns None, or, if the worker becomes idle, the seconds after which it has to call again (-1: never).
        """
        if worker.waiter in self.idle:
            self.idle.remove(worker.waiter)
        for box in worker.boxes:
            self.end(box)
        self.delivered += worker.delivered
        worker.delivered, worker.boxes = 0, self._take(worker.most)
        if worker.boxes or not self.running:
            return None
        self.idle.append(worker.waiter)
        return max(0.0, min(b.resume_at for b in self._paused) - monotonic()) if self._paused else -1.0

    def _take(self, most: int) -> list[Mailbox]:
        """Return the next mailboxes: several if each has a single call to make, else one."""
        if self._paused:
            moment = monotonic()
            for box in [b for b in self._paused if b.resume_at <= moment]:
                self.resume(box)
        boxes: list[Mailbox] = []
        while self._queue and len(boxes) < most:
            box = self._queue.popleft()
            if box.state is not READY:
                continue
            if box.take_one():
                if boxes:
                    box.held = 1  # its call begins after the others have returned
            elif boxes:
                self._queue.appendleft(box)
                break
            elif box.take():
                most = 1
            else:
                box.to(IDLE)
                self.forget(box)
                continue
            box.state = RUNNING
            boxes.append(box)
        return boxes

    def end(self, box: Mailbox) -> None:
        """End the turn of a mailbox. The part of the hand that its executor left in `rest` comes next.

        A call of `on_listen` in `rest` failed, and is made again after a pause. If the hand is void, the call goes
        back to the coverage, or is made first if the subscription is covered again.
        """
        hand, rest, void = box.hand, box.rest, box.sub is None
        if box.places is not None:
            self.delivered += box.given()
        box.hand = box.sub = box.rest = None
        box.held = 0
        if rest is not None:
            if not void:
                box.put_back(rest)
            if isinstance(rest, ListenCall):
                if not void:
                    return self._pause(box)
                if not self._coverage.give_back(box.id, rest):
                    box.tell_first(rest)
        elif type(hand) is ListenCall:
            box.attempt = 0
        if box.rate.since is not None and box.has_room:
            box.rate.end(monotonic(), box.taken)
        if box.state is PULLED:
            self.forget(box)
        elif box.entries:
            self._queue.append(box)
            box.state = READY
        else:
            box.state = IDLE
            if not box.subs:
                self.forget(box)

    def _pause(self, box: Mailbox) -> None:
        box.attempt += 1
        box.resume_at = monotonic() + self._delay(box.attempt)
        box.to(PAUSED)
        self._paused.append(box)
        if self.idle:
            _release(self.idle[-1])  # so that it waits no longer than until then

    def forget(self, box: Mailbox) -> None:
        """Delete the mailbox of an id that is not subscribed to anything."""
        if not box.subs and not box.entries and box.state in (IDLE, PULLED) and self.boxes.get(box.id) is box:
            del self.boxes[box.id]


def _release(waiter: Any) -> bool:
    """Wake the worker that waits with this lock; return False if it is awake already. Any thread."""
    try:
        waiter.release()
    except RuntimeError:
        return False
    return True
