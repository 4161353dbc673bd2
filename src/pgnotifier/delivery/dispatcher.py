"""The state lock, and everything that it guards: mailboxes, coverage, routes, and the queue of ready mailboxes.

Threads hold the lock to move entries between queues and for nothing else: never over I/O, a join, user code or a call
into an event loop. Any thread may call a method, without the lock, unless the method says otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from datetime import datetime
from typing import Any

from pyrsistent import PMap

from ..clock import now
from ..gap import Gap, Reason
from ..registry import NO_CHANNELS, SYSCHAN, Channel, Registry, Subscription, Touched
from .coverage import Coverage, ListenCall
from .mailbox import Mailbox
from .posting import Posting
from .states import IDLE, PAUSED, PULLED
from .turns import Turns, Worker


class Dispatcher:
    """Keeps mailboxes for good, and has calls made from `begin` until `halt`.

    `delay(attempt)` returns the seconds until a failed `on_listen` is called again. `on_room()` is called without the
    lock when a full mailbox that the listener waits for has room.
    """

    def __init__(
        self,
        max_pending: int,
        delay: Callable[[int], float],
        on_room: Callable[[], None],
        coverage: Coverage | None = None,
    ) -> None:
        self.limit, self._delay, self._on_room = max_pending, delay, on_room
        self.lock: Any = threading.RLock()  # an RLock knows whether the current thread holds it
        self.coverage = coverage or Coverage()
        self.turns = Turns(self.lock, self.coverage, delay)
        self.boxes: dict[Hashable, Mailbox] = self.turns.boxes
        self.posting = Posting(self.turns)
        self.post, self.event = self.posting.post, self.posting.event
        self.active: PMap[str, bool] = NO_CHANNELS  # the channels that are listened to
        self.failed = 0
        self.last_failure: str | None = None

    # -- the registry that calls follow ---------------------------------------------------------------------

    def commit(self, reg: Registry, touched: Iterable[Touched], confirmed: datetime, active: PMap[str, bool]) -> None:
        """Make calls follow `reg`, in which `touched` may be new. `active` channels are listened to.

        Everything committed before `confirmed` has been received. With or without the lock.
        """
        with self.lock:
            old, self.posting.registry = self.posting.registry, reg
            self.active = active
            for name, ids in touched:
                self.posting.forget_route(name)
                before, entry = old.channels.get(name), reg.channels.get(name)
                if ids is None:
                    ids = tuple({e: None for c in (before, entry) if c is not None for e in c.subscribers})
                for id in ids:
                    self._follow(id, name, entry, confirmed)
                    if before is not None and before is not entry and id not in reg.ids:
                        self._end_stream(before.subscribers.get(id))
        self.turns.wake()

    def _follow(self, id: Hashable, name: str, entry: Channel | None, confirmed: datetime) -> None:
        """Bring the mailbox and coverage of one subscription in line with the registry. Under the lock."""
        sub = entry.subscribers.get(id) if entry is not None else None
        wanted = sub is not None and sub.on_listen is not None
        if sub is not None and (sub.mute or entry is None or entry.mute):
            sub = None
        box = self.boxes.get(id)
        followed = box is not None and name in box.subs
        if not (self.turns.running or followed):
            sub = None  # a stopped notifier calls nobody
        covered = sub is not None and name in self.active
        if wanted and not covered and not (followed and self.coverage.is_told(name, id)):
            sub = None  # no call comes before the on_listen that is due
        if sub is None:
            self.coverage.update(name, id, wanted, False, confirmed, now())
            if box is not None and name in box.subs:
                self._void(box, name, "muted", confirmed)
            return
        if sub.pulled is not None and (box is None or box.owner is not sub.pulled):
            box = self.boxes[id] = Mailbox(id, self.limit).pulled_by(sub.pulled)
        elif box is None:
            box = self.boxes[id] = Mailbox(id, self.limit)
        box.follow(name, sub)
        self.coverage.update(name, id, wanted, covered, confirmed, now(), box.tell)
        if box.entries:
            self.turns.add(box)

    def _end_stream(self, sub: Subscription | None) -> None:
        """End the stream of `sub`, if it is a stream's, because it has no channel any more. Under the lock."""
        if sub is not None and sub.pulled is not None:
            sub.pulled.over = True
            self.turns.notice(sub.pulled)

    def _void(self, box: Mailbox, name: str, reason: Reason, confirmed: datetime) -> None:
        """Throw away what waits for a subscription that is no longer covered, and void the hand. Under the lock."""
        since, calls = box.loss(name, confirmed)
        for call in (ListenCall(name, Gap(name, reason, since, now())), *calls):
            self.coverage.give_back(box.id, call)  # first: Ctrl-C in between can repeat it, but not lose it
        del box.subs[name]
        box.purge(name)
        if box.sub is None and box.places is not None:
            self.turns.delivered += box.given()
        if box.state is PAUSED and calls:
            self.turns.resume(box)
        self.turns.forget(box)

    def lose(self, reason: Reason, confirmed: datetime, error: str | None = None) -> None:
        """Mark all channels as no longer listened to. Everything committed before `confirmed` has been received."""
        with self.lock:
            self.active = NO_CHANNELS
            self.coverage.lose(reason, confirmed, now(), error)

    def tell(self, calls: Iterable[tuple[Hashable, ListenCall]]) -> None:
        """Queue calls of `on_listen` for these ids, behind all that waits for them."""
        with self.lock:
            for id, call in calls:
                box = self.boxes[id]
                box.tell(call)
                self.turns.add(box)
        self.turns.wake()

    # -- turns -----------------------------------------------------------------------------------------------

    def next(self, worker: Worker) -> bool:
        """End the worker's turns, and wait for the next ones; return False if it has to end. On the worker."""
        turns, posting = self.turns, self.posting
        while True:
            ended = worker.boxes
            with self.lock:
                seconds = turns.exchange(worker)
            if turns.idle or posting.blocking or posting.late or turns.bell.is_watched:
                self.follow_up(ended)
            if seconds is None:
                return bool(worker.boxes)
            del ended  # while it waits, a worker keeps nothing alive
            worker.waiter.acquire(timeout=seconds)

    def follow_up(self, boxes: list[Mailbox]) -> None:
        """Wake other workers and the listener, announce losses and ring the bell, after turns have ended."""
        self.turns.wake()
        if self.posting.blocking and any(box.blocking and box.has_room for box in boxes):
            self._on_room()
        if self.posting.late and any(box.unannounced for box in boxes):
            self.posting.announce(boxes)
        self.turns.bell.ring()

    # -- life ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Deliver what arrives from now on."""
        with self.lock:
            self.turns.begin()

    def halt(self, event: dict[str, Any] | None, confirmed: datetime) -> None:
        """Throw away what waits, and begin no call any more but those of SYSCHAN's subscribers, `event` as the last.

        Workers end when nothing is left; the caller wakes them, without the lock. A second call does nothing.
        """
        with self.lock:
            if self.turns.running:
                self.lose("stopped", confirmed)
                for box in tuple(self.boxes.values()):
                    for name in tuple(box.subs):
                        if name != SYSCHAN:
                            self._void(box, name, "stopped", confirmed)
                self.posting.halt(event)
                self.turns.running = False
                subs = (s for entry in self.posting.registry.channels.values() for s in entry.subscribers.values())
                for owner in {sub.pulled for sub in subs if sub.pulled is not None}:
                    self.turns.notice(owner)  # also without a mailbox, so that its readers' loops end

    def for_child(self, confirmed: datetime) -> Dispatcher:
        """Return a dispatcher for a forked child, with the same coverage and a lock that no thread holds."""
        self.lock = self.turns.lock = threading.RLock()
        self.halt(None, confirmed)
        self.turns.clear()
        for box in self.boxes.values():
            box.sub = None  # a worker that has forked makes no more calls
        return Dispatcher(self.limit, self._delay, self._on_room, self.coverage)

    def is_idle(self, streams: bool = True) -> bool:
        """Return True if nothing waits and no call is under way; `streams`: and nothing is left in a stream."""
        return all(
            box.state is IDLE or (box.state is PULLED and not (streams and (box.entries or box.hand)))
            for box in tuple(self.boxes.values())
        )

    def counts(self) -> dict[str, int]:
        """Return `delivered`, `failed`, `dropped` and `pending`. Takes no lock."""
        return {
            "delivered": self.turns.delivered,
            "failed": self.failed,
            "dropped": self.posting.dropped,
            "pending": sum(map(len, tuple(self.boxes.values()))),
        }
