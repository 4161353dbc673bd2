"""From batches to mailboxes (contract 9): routes, full mailboxes, and the notifier's own events.

On the listener thread, which never waits for user code, but for a full mailbox, within limits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import itemgetter
from time import monotonic
from typing import Any

from .. import registry
from ..connection.session import now
from ..log import WARNING, log
from ..registry import SYSCHAN, Channel, Registry, Subscription
from .boxes import Boxes
from .calls import Calls
from .items import Event, Fanout, Shared
from .mailbox import Mailbox
from .workers import Workers

_channel = itemgetter(0)  # of a Notify

READ_ON = 0.01  # seconds after which the listener looks at the socket again while it waits for room
ANNOUNCE = 1.0  # seconds between two events that tell of one mailbox's overflow


MANY = 4  # mailboxes: a single notification for so many is handed over once

Pair = tuple[Mailbox, Subscription]


class _Route:
    """Where a channel's notifications go, as long as the registry has that entry for it."""

    __slots__ = ("boxes", "entry", "latest", "pairs")

    def __init__(self, entry: Channel, pairs: tuple[Pair, ...], latest: tuple[Mailbox, ...]) -> None:
        self.entry, self.latest = entry, latest
        self.boxes = tuple(box for box, _ in pairs)
        # None where a notification is not to be fanned out: too few to be worth it, or event loops among them
        self.pairs = None if len(pairs) < MANY or any(sub.awaits for _, sub in pairs) else pairs


class Posting:
    """Puts what arrives into the mailboxes of those whom `calls` would call now."""

    def __init__(self, calls: Calls, boxes: Boxes, workers: Workers) -> None:
        self._calls, self._boxes, self._workers = calls, boxes, workers
        self._routes: dict[str, _Route] = {}
        self._routed: tuple[Registry | None, dict[str, _Route | None]] = (None, {})  # as of that registry
        self._room_lock = threading.RLock()
        self._room = threading.Condition(self._room_lock)
        self._decoding = tuple(threading.Lock() for _ in range(8))

    def forget(self, channel: str) -> None:
        """It is no more."""
        self._routes.pop(channel, None)

    def taken(self, box: Mailbox) -> None:
        """A worker has taken some of its items: there may be room."""
        if box.waited_for and (box.room >= box.limit // 4 or not len(box)):
            with self._room_lock:
                self._room.notify_all()

    def announce_in_time(self, box: Mailbox) -> None:
        """Tell of an overflow when it is over, or once in a while."""
        if box.unannounced and (not len(box) or monotonic() - box.announced >= ANNOUNCE):
            self.announce(box)

    def post(self, batch: Sequence[Any], well: datetime, give_up: Callable[[], bool]) -> int:
        """Hand over what has arrived; returns how many, fewer where `give_up()` came true at a full mailbox."""
        view = self._calls.view
        if view is not self._routed[0]:
            self._routed = (view, {})
        routes = self._routed[1]
        size = len(batch)
        channels = list(map(_channel, batch))
        one = size > 0 and channels.count(channels[0]) == size  # as it mostly is
        begin = 0
        while begin < size:
            channel = channels[begin]
            end = size if one else begin + 1
            while end < size and channels[end] == channel:
                end += 1
            try:
                route = routes[channel]
            except KeyError:
                route = routes[channel] = self._route(view, channel)
            if route is not None:
                run = batch if end - begin == size else batch[begin:end]
                done = self._put(route, run, well, give_up)
                if done < len(run):
                    return begin + done
            begin = end
        return size

    def nudge(self) -> None:
        """Have a `post` that waits ask its `give_up` now."""
        with self._room_lock:
            self._room.notify_all()

    def event(self, payload: dict[str, Any]) -> None:
        """Put an event of the notifier's own before SYSCHAN's subscribers: pid 0. From any thread."""
        route = self._route(self._calls.view, SYSCHAN)
        if route is not None and self._workers.running:
            event = Event(payload)
            for box in (*route.boxes, *route.latest):
                if box.room <= 0:
                    box.drop(1, now())  # it raises no further event
                    box.unannounced.clear()
                box.put([event], now())
                if box.shipped is not None:
                    self._calls.reclaim_from_closed(box)
            self._workers.offer((*route.boxes, *route.latest))

    def _route(self, view: Registry, channel: str) -> _Route | None:
        entry = view.channels.get(channel)
        if entry is None:
            return None
        route = self._routes.get(channel)
        if route is None or route.entry is not entry:
            subs = registry.audience(entry).items()
            pairs = tuple((self._boxes.make(id), sub) for id, sub in subs if not sub.latest)
            latest = tuple(self._boxes.make(id) for id, sub in subs if sub.latest)
            route = self._routes[channel] = _Route(entry, pairs, latest)
        return route

    def _put(self, route: _Route, run: Sequence[Any], well: datetime, give_up: Callable[[], bool]) -> int:
        boxes, items = route.boxes, run
        if len(boxes) + len(route.latest) > 1:
            locks = self._decoding
            items = [Shared(n.channel, n.payload, n.pid, locks[k & 7]) for k, n in enumerate(run)]
        done, size = 0, len(items)
        if size == 1 and route.pairs is not None and self._fan_out(route, route.pairs, items[0], well):
            boxes = ()
        while done < size:
            if done and give_up():
                return done
            chunk = size - done
            for box in boxes:
                if box.room < chunk:
                    room = box.room if box.room > 0 else self._make_room(box, chunk, give_up)
                    if room <= 0:
                        return done
                    chunk = min(chunk, room)
            part = items if chunk == size else items[done : done + chunk]
            for box in boxes:
                box.put(part, well)
                if box.shipped is not None:
                    self._calls.reclaim_from_closed(box)
            self._workers.offer(boxes)
            done += chunk
            for box in route.latest:
                if not box.put_latest(items[done - 1], well) and box.room < 0:
                    self._drop(box, 1)
                if box.shipped is not None:
                    self._calls.reclaim_from_closed(box)
            self._workers.offer(route.latest)
        return size

    def _fan_out(self, route: _Route, pairs: tuple[Pair, ...], item: Shared, well: datetime) -> bool:
        """Hand one notification to many at once, and to those that are busy as ever; not where one has no room."""
        if item.channel == SYSCHAN:
            return False
        idle: deque[Pair] = deque()
        busy = []
        job = Fanout(item, route.entry, self._calls.epoch, idle)
        for pair in pairs:
            box = pair[0]
            if not box.claim.acquire(False):
                busy.append(box)
            elif box.items:
                box.claim.release()
                busy.append(box)
            else:
                box.held, box.fanned = 1, well
                idle.append(pair)
        if any(box.room <= 0 for box in busy):
            for box, _ in idle:
                self._workers.release(box)
            return False
        for box in busy:
            box.put((item,), well)
            if box.shipped is not None:
                self._calls.reclaim_from_closed(box)
        if idle:
            self._workers.share(job)
        if busy:
            self._workers.offer(busy)
        return True

    def _make_room(self, box: Mailbox, wanted: int, give_up: Callable[[], bool]) -> int:
        """Wait for room as long as the contract says, then throw away the oldest; 0 where given up.

        It is a wait for all that are full: each of them has its time, and not one after the other.
        """
        while box.patience > 0:
            if self._boxes.get(box.id) is not box:  # removed since this batch was routed: nobody takes from it
                box.drop(len(box), now())
                return box.room
            full = [(other, other.taken) for other in self._boxes.all() if other.room <= 0]
            began = monotonic()
            with self._room_lock:
                box.waited_for = True
                if box.room <= 0:
                    self._room.wait(min(READ_ON, box.patience))
                box.waited_for = False
            if give_up():
                return 0
            waited = monotonic() - began
            for other, taken in full:
                other.waited(waited, other.taken - taken)
            if box.room > 0:
                return box.room
        self._drop(box, min(wanted, box.limit) - box.room)
        return box.room

    def _drop(self, box: Mailbox, count: int) -> None:
        box.drop(count, now())
        if monotonic() - box.announced >= ANNOUNCE:
            self.announce(box)

    def announce(self, box: Mailbox) -> None:
        """Tell of what was thrown away, unless nobody but SYSCHAN's own subscriber lost it."""
        box.announced = monotonic()
        for channel, number in box.announce().items():
            log(WARNING, "subscriber %r is too slow: %d notifications on %r were dropped", box.id, number, channel)
            if channel != SYSCHAN:
                self.event({"event": "overflow", "id": box.id, "channel": channel, "dropped": number})
