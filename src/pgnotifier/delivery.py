"""From batches to mailboxes to workers (contract 4, 8 and 9). User code is called by `calls` alone.

The listener thread posts and never waits for user code, but for a full mailbox, within limits. A mailbox with
something in it stands in the queue of the ready once; whoever has its claim gives it a turn.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import datetime
from time import monotonic
from typing import Any

from pyrsistent import PMap, pmap

from . import registry
from .calls import Calls
from .gap import Reason
from .log import WARNING, log
from .mailbox import Event, Mailbox, Shared
from .registry import EMPTY, SYSCHAN, Channel, Registry, Touched
from .session import now
from .workers import Workers

NOTHING: PMap[str, bool] = pmap()
READ_ON = 0.01  # seconds after which the listener looks at the socket again while it waits for room
ANNOUNCE = 1.0  # seconds between two events that tell of one mailbox's overflow


class _Route:
    """Where a channel's notifications go, as long as the registry has that entry for it."""

    __slots__ = ("boxes", "entry", "latest")

    def __init__(self, entry: Channel, boxes: tuple[Mailbox, ...], latest: tuple[Mailbox, ...]) -> None:
        self.entry, self.boxes, self.latest = entry, boxes, latest


class Delivery:
    """Mailboxes for good, and workers from `start` to `stop`."""

    def __init__(
        self, workers: int, max_pending: int, decode: Callable[[str], Any], fatal: Callable[[], None]
    ) -> None:
        self._count, self._max_pending = workers, max_pending
        self._calls = Calls(decode, self.event, fatal)
        self._workers = Workers(workers, self._run, self._through)
        self._calls.released = self._workers.release
        self._boxes: dict[Hashable, Mailbox] = {}
        self._boxes_lock = threading.RLock()
        self._routes: dict[str, _Route] = {}
        self._routed: tuple[Registry | None, dict[str, _Route | None]] = (None, {})  # as of that registry
        self._room = threading.Condition()
        self._active: PMap[str, bool] = NOTHING
        self._published = EMPTY
        self._decoding = tuple(threading.Lock() for _ in range(8))
        self._left = [0, 0, 0]  # delivered, failed, dropped of mailboxes that are no more

    # -- what is wanted, and what is heard -----------------------------------------------------------------

    def publish(
        self,
        reg: Registry,
        touched: Sequence[Touched],
        active: PMap[str, bool],
        changed: Iterable[str],
        well: datetime,
    ) -> None:
        """From now on calls follow `reg`, in which `touched` may be new; `active` is listened to.

        That is new for the channels in `changed`. All before `well` has been received.
        """
        calls = self._calls
        with calls.telling:
            self._active = active
            ready = self._begin(reg, touched)
            ready += self._follow(reg, [*touched, *((name, None) for name in changed)], well)
            old = calls.view
            if self._workers.running:
                calls.view = reg
        self._workers.offer(ready)
        for name, ids in touched:
            if name not in reg.channels:
                self._routes.pop(name, None)
            self._forget(reg, ids if ids is not None or name in reg.channels else _subscribers(old, name))

    def _begin(self, reg: Registry, touched: Sequence[Touched]) -> list[Mailbox]:
        """New subscriptions of ids that have something waiting from earlier ones."""
        before, self._published = self._published, reg
        ready: list[Mailbox] = []
        if not self._workers.running:
            return ready  # nothing waits
        for name, ids in touched:
            entry, old = reg.channels.get(name), before.channels.get(name)
            for id in ids or ():
                box = self._boxes.get(id)
                was, is_now = (e is not None and id in e.subscribers for e in (old, entry))
                if box is not None and is_now and not was and box.begin(name):
                    ready.append(box)
        return ready

    def connected(self, active: Callable[[], PMap[str, bool]], well: datetime) -> None:
        """`active()` is listened to, and nothing that came on this session has been posted yet."""
        with self._calls.telling:
            self._active = active()  # a change may have been made since it began
            ready = self._follow(self._published, self._calls.hearing.channels(), well)
        self._workers.offer(ready)

    def deaf(self, reason: Reason, well: datetime, error: str | None = None) -> None:
        """Nothing is heard any more; all before `well` has been received."""
        with self._calls.telling:
            self._active = NOTHING
            self._calls.hearing.lose(reason, lambda _: well, now(), error)

    def _follow(self, reg: Registry, touched: Iterable[Touched], well: datetime) -> list[Mailbox]:
        def since(id: Hashable) -> datetime:
            box = self._boxes.get(id)
            return well if box is None else box.oldest(well)

        ready = []
        for id, telling in self._calls.hearing.follow(reg, self._active, touched, since, now()):
            box = self._box(id)
            box.tell(telling, well)
            ready.append(box)
        return ready

    def _forget(self, reg: Registry, ids: Iterable[Hashable] | None) -> None:
        """Let go of the mailboxes of those that are subscribed nowhere any more."""
        for id in ids or ():
            box = self._boxes.get(id)
            if box is None:
                continue
            box.leaving = id not in reg.ids
            # A claim that is taken here is never given back. One that is held elsewhere ends in _release.
            if box.leaving and box.claim.acquire(False):
                self._remove(box)

    def _remove(self, box: Mailbox) -> None:
        with self._boxes_lock:
            if self._boxes.get(box.id) is box:
                del self._boxes[box.id]
                for n, count in enumerate((box.delivered, box.failed, box.dropped)):
                    self._left[n] += count

    def _box(self, id: Hashable) -> Mailbox:
        box = self._boxes.get(id)
        if box is None:
            with self._boxes_lock:
                box = self._boxes.setdefault(id, Mailbox(id, self._max_pending))
        return box

    # -- from the listener thread --------------------------------------------------------------------------

    def post(self, batch: Sequence[Any], well: datetime, give_up: Callable[[], bool]) -> int:
        """Hand over what has arrived; returns how many, fewer where `give_up()` came true at a full mailbox."""
        view = self._calls.view
        if view is not self._routed[0]:
            self._routed = (view, {})
        routes = self._routed[1]
        size = len(batch)
        begin = 0
        while begin < size:
            channel = batch[begin].channel
            end = begin + 1
            while end < size and batch[end].channel == channel:
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
        with self._room:
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
            self._workers.offer((*route.boxes, *route.latest))

    def _route(self, view: Registry, channel: str) -> _Route | None:
        entry = view.channels.get(channel)
        if entry is None:
            return None
        route = self._routes.get(channel)
        if route is None or route.entry is not entry:
            subs = registry.audience(entry).items()
            boxes = tuple(self._box(id) for id, sub in subs if not sub.latest)
            latest = tuple(self._box(id) for id, sub in subs if sub.latest)
            route = self._routes[channel] = _Route(entry, boxes, latest)
        return route

    def _put(self, route: _Route, run: Sequence[Any], well: datetime, give_up: Callable[[], bool]) -> int:
        boxes, items = route.boxes, run
        if len(boxes) + len(route.latest) > 1:
            locks = self._decoding
            items = [Shared(n.channel, n.payload, n.pid, locks[k & 7]) for k, n in enumerate(run)]
        done, size = 0, len(items)
        while done < size:
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

    def _make_room(self, box: Mailbox, wanted: int, give_up: Callable[[], bool]) -> int:
        """Wait for room as long as the contract says, then throw away the oldest; 0 where given up.

        It is a wait for all that are full: each of them has its time, and not one after the other.
        """
        while box.patience > 0:
            with self._boxes_lock:
                full = [(other, other.taken) for other in self._boxes.values() if other.room <= 0]
            began = monotonic()
            with self._room:
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
            self._announce(box)

    def _announce(self, box: Mailbox) -> None:
        """Tell of what was thrown away, unless nobody but SYSCHAN's own subscriber lost it."""
        box.announced = monotonic()
        for channel, number in box.announce().items():
            log(WARNING, "subscriber %r is too slow: %d notifications on %r were dropped", box.id, number, channel)
            if channel != SYSCHAN:
                self.event({"event": "overflow", "id": box.id, "channel": channel, "dropped": number})

    # -- from workers and event loops ----------------------------------------------------------------------

    def _run(self, box: Mailbox) -> bool:
        shipped = self._calls.run(box)
        if box.waited_for and (box.room >= box.limit // 4 or not len(box)):
            with self._room:
                self._room.notify_all()
        return shipped

    def _through(self, box: Mailbox) -> bool:
        if box.unannounced and (not len(box) or monotonic() - box.announced >= ANNOUNCE):
            self._announce(box)
        if box.leaving and not len(box):
            with self._calls.telling:
                box.leaving = box.id not in self._published.ids
                if box.leaving and not len(box):
                    self._remove(box)
                    return False
        return True

    # -- life ----------------------------------------------------------------------------------------------

    def start(self, reg: Registry) -> None:
        """Have the workers run, and calls follow `reg`."""
        with self._calls.telling:
            self._calls.view = self._published = reg
            self._workers.start()

    def drain(self, deadline: float) -> None:
        """Wait until nothing waits and no callback runs, until `deadline` (monotonic seconds) at most."""
        self._reclaim()
        self._workers.wait(lambda: not any(box.claim.locked() for box in tuple(self._boxes.values())), deadline)

    def halt(self, event: dict[str, Any] | None, well: datetime) -> None:
        """No call but of SYSCHAN's subscribers with `event` begins after this. What waits is thrown away."""
        calls = self._calls
        with calls.telling:
            if not self._workers.running:
                return
            boxes = tuple(self._boxes.values())
            oldest = {box.id: box.oldest(well) for box in boxes}
            self._active = NOTHING
            calls.hearing.lose("stopped", lambda id: oldest.get(id, well), now(), None)
            calls.epoch += 1
            calls.view = registry.only(calls.view, SYSCHAN)
            for box in boxes:
                for telling in box.clear():
                    calls.hearing.give_back(box.id, telling)
            if event is not None:
                self.event(event)
            self._workers.stop()
        self._reclaim()
        self.nudge()

    def wait(self, deadline: float) -> None:
        """Wait until the workers have ended, and the callbacks on event loops; or have been started again."""
        calls, workers = self._calls, self._workers
        workers.wait(lambda: workers.running or (workers.ended and not calls.awaiting), deadline)

    def _reclaim(self) -> None:
        for box in tuple(self._boxes.values()):
            if box.shipped is not None:
                self._calls.reclaim_from_closed(box)

    def in_a_callback(self) -> bool:
        """Whether the caller is inside a callback, or on an event loop that has one running."""
        if self._workers.is_one(threading.current_thread()):
            return True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        return any(box.loop is loop for box in tuple(self._calls.awaiting))

    def counts(self) -> dict[str, int]:
        with self._boxes_lock:
            boxes = tuple(self._boxes.values())
            delivered, failed, dropped = self._left
        return {
            "delivered": delivered + sum(box.delivered for box in boxes),
            "failed": failed + sum(box.failed for box in boxes),
            "dropped": dropped + sum(box.dropped for box in boxes),
            "pending": sum(map(len, boxes)),
        }

    def heir(self, decode: Callable[[str], Any], fatal: Callable[[], None], well: datetime) -> Delivery:
        """In a forked child: one that knows what subscribers were told, without threads, and with fresh locks."""
        child = Delivery(self._count, self._max_pending, decode, fatal)
        hearing = child._calls.hearing = self._calls.hearing
        oldest = {box.id: box.oldest_unlocked(well) for box in self._boxes.values()}
        hearing.lose("stopped", lambda id: oldest.get(id, well), now(), None)
        self._calls.view = EMPTY  # the child's only thread may be in one of the callbacks here
        self._calls.epoch += 1
        self._workers.void()
        return child


def _subscribers(reg: Registry, name: str) -> Iterable[Hashable]:
    entry = reg.channels.get(name)
    return entry.subscribers if entry is not None else ()
