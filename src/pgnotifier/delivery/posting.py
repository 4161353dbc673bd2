"""From batches to mailboxes: routes, full mailboxes, and the notifier's own events.

A post never waits. It takes what fits every mailbox. The listener posts the rest when there is room, or when its
patience has ended. Every method runs under the state lock, unless it says otherwise.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Hashable, Iterable, Sequence
from datetime import datetime
from operator import itemgetter
from time import monotonic
from typing import Any

from psycopg import Notify

from ..clock import now
from ..log import WARNING, log
from ..registry import EMPTY, SYSCHAN, Registry
from .mailbox import UNKNOWN, Mailbox, Run
from .patience import Patience
from .states import IDLE, PAUSED, RUNNING
from .turns import Turns

ANNOUNCE_SECONDS = 1.0  # between two events `overflow` of one mailbox
MAX_SLICE = 1000  # mailboxes that a post fills before it releases the lock for others
LOOK_AGAIN = 0.02  # seconds after which the listener measures again how fast a full mailbox is emptied

_channel = itemgetter(0)  # of a psycopg.Notify

Route = tuple[tuple[Mailbox, ...], tuple[Mailbox, ...]]  # mailboxes that want everything, and only the latest


class Posting:
    """Puts notifications and events into mailboxes, and adds these to the queue `turns`."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._boxes = turns, turns.boxes
        self.registry: Registry = EMPTY
        self._routes: dict[str, Route] = {}
        self._patience = Patience(monotonic())
        self._blocked_at = 0.0
        self.blocking: list[Mailbox] = []  # mailboxes that the listener waits for
        self.dropped: int = 0
        self.late: dict[Mailbox, None] = {}  # mailboxes that lost something, in order

    def forget_route(self, channel: str) -> None:
        self._routes.pop(channel, None)

    def post(self, batch: Sequence[Any], since: datetime) -> tuple[int, float]:
        """Put notifications into their subscribers' mailboxes. The listener thread, without the lock.

        Returns how many, and, if mailboxes have no room for the others, the seconds after which to try again at the
        latest (else 0). Everything committed before `since` had been received before this batch.
        """
        turns, size, done = self._turns, len(batch), 0
        channels = list(map(_channel, batch))
        one = size > 0 and channels.count(channels[0]) == size  # the usual case
        while done < size:
            channel = channels[done]
            end = size if one else done + 1
            while end < size and channels[end] == channel:
                end += 1
            with turns.lock:
                if self.blocking:
                    self.resume()
                route, fit = self.plan(channel, end - done) if turns.running else (((), ()), end - done)
                everything, latest = route if fit else ((), ())
                if everything or latest:
                    run = self.run(route, channel, batch if fit == size else batch[done : done + fit], since)
                    self.put(everything[:MAX_SLICE], latest, run)
            for begin in range(MAX_SLICE, len(everything), MAX_SLICE):
                turns.wake()
                with turns.lock:  # some may have been unsubscribed since
                    self.put([b for b in everything[begin : begin + MAX_SLICE] if channel in b.subs], (), run)
            turns.wake()
            if self.late:
                self.announce(tuple(self.late))
            if not fit:
                return done, min(LOOK_AGAIN, self._patience.left(monotonic()) or LOOK_AGAIN)
            done += fit
        return size, 0.0

    def resume(self) -> None:
        """Charge the listener's wait for room to its patience, if a mailbox was slow, and end the wait."""
        moment = monotonic()
        slow = [b.rate.since is not None and b.rate.is_fast(moment, b.taken) is False for b in self.blocking]
        for box in self.blocking:
            box.blocking = False
        self.blocking = []
        if any(slow):
            self._patience.spend(moment - self._blocked_at, moment)

    def plan(self, channel: str, size: int) -> tuple[Route, int]:
        """Return a channel's mailboxes, and how many of `size` notifications they take now; make room for those."""
        route = self._routes.get(channel)
        if route is None:
            route = self._routes[channel] = self._route(channel)
        full: list[tuple[Mailbox, int]] = []  # and how many notifications each would get, at most
        fit = size
        for box in route[0]:
            if box.limit - box.waiting - box.held < size:  # for every full one, so that all are measured at once
                fit = self._reduce(box, fit, size, full)
        for box in route[1]:
            if box.room < 1 and channel not in box.latest:
                fit = self._reduce(box, fit, 1, full)
        if fit and full:
            fit = min([fit, *(box.limit - box.held for box, wanted in full if wanted > 1)])
            for box, wanted in full:
                self.make_room(box, min(wanted, fit))
        return route, fit

    def _reduce(self, box: Mailbox, fit: int, wanted: int, full: list[tuple[Mailbox, int]]) -> int:
        """Return how many of `fit` a full mailbox takes now; if it is too slow, all, and note it in `full`."""
        if box.has_room and box.room > 0:
            return min(fit, box.room)  # the rest may well fit next time
        moment = monotonic()
        box.rate.begin(moment, box.taken)
        fast = box.rate.is_fast(moment, box.taken)
        if box.state is PAUSED or (fast is False and not self._patience.left(moment)):
            full.append((box, wanted))
            return fit
        if not box.blocking:
            if not self.blocking:
                self._blocked_at = moment
            box.blocking = True
            self.blocking.append(box)
        return min(fit, max(0, box.room))

    def _route(self, channel: str) -> Route:
        entry = self.registry.channels.get(channel)
        found = (self._boxes.get(id) for id in (entry.subscribers if entry is not None else ()))
        boxes = [box for box in found if box is not None and channel in box.subs]
        latest = tuple(box for box in boxes if box.subs[channel].latest)
        return tuple(box for box in boxes if not box.subs[channel].latest), latest

    def run(self, route: Route, channel: str, notifications: Sequence[Any], since: datetime) -> Run:
        """Return a run of these notifications, with shared payloads if several subscribers get it."""
        size = len(notifications)
        if len(route[0]) + len(route[1]) > 1:
            return Run(channel, notifications, since, 0, size, [UNKNOWN] * size, allocate_lock())
        return Run(channel, notifications, since, 0, size)

    def put(self, boxes: Iterable[Mailbox], latest: Iterable[Mailbox], run: Run) -> None:
        """Put the run into `boxes`, and its last notification into `latest`."""
        size, add = run.stop - run.start, self._turns.add
        for box in boxes:
            box.entries.append(run)
            box.waiting += size
            if box.state is IDLE or box.owner is not None:  # otherwise it is queued, or a worker has it
                add(box)
        for box in latest:
            box.put_latest(run)
            add(box)

    def event(self, payload: dict[str, Any]) -> None:
        """Put one of the notifier's own events into the mailboxes of SYSCHAN's subscribers. Any thread."""
        with self._turns.lock:
            everything, latest = self._route(SYSCHAN) if self._turns.running else ((), ())
            for box in (*everything, *latest):
                if box.room < 1 and SYSCHAN not in box.latest:
                    self.make_room(box, 1)
            self.put(everything, latest, Run(SYSCHAN, (Notify(SYSCHAN, "", 0),), now(), 0, 1, [payload]))
        self._turns.wake()

    def halt(self, event: dict[str, Any] | None) -> None:
        """Post `event`, if given, as the last; nothing else is posted from now on."""
        self._routes.clear()
        self.blocking = []
        if event is not None:
            self.event(event)

    def announce(self, boxes: Iterable[Mailbox]) -> None:
        """Log what these mailboxes lost, and send events `overflow`. Any thread, without the lock.

        A mailbox is announced when it has caught up, or after `ANNOUNCE_SECONDS`.
        """
        told: list[tuple[Hashable, dict[str, int]]] = []
        moment = monotonic()
        with self._turns.lock:
            for box in boxes:
                caught_up = not box.entries and box.state is not RUNNING
                if box in self.late and (caught_up or moment - box.announced >= ANNOUNCE_SECONDS):
                    del self.late[box]
                    told.append((box.id, box.unannounced))
                    box.unannounced, box.announced = {}, moment
        for id, gone in told:
            for channel, number in gone.items():
                log(WARNING, "subscriber %r is too slow: %d notifications on %r were dropped", id, number, channel)
                if channel != SYSCHAN:
                    self.event({"event": "overflow", "id": id, "channel": channel, "dropped": number})

    def make_room(self, box: Mailbox, size: int) -> None:
        """Throw away the oldest notifications, no more than needed for `size`, and note them for `announce`."""
        for channel, number in box.drop(size - box.room, now()).items():
            self.dropped += number
            box.unannounced[channel] = box.unannounced.get(channel, 0) + number
            self.late[box] = None
