"""Who is called, and what they are told: `posting`, the mailboxes, `workers` and `calls` as one (contract 4, 8, 9).

User code is called by `calls` alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import datetime
from typing import Any

from pyrsistent import PMap, pmap

from .. import registry
from ..connection.session import now
from ..gap import Reason
from ..registry import EMPTY, SYSCHAN, Registry, Touched
from .boxes import Boxes
from .calls import Calls
from .mailbox import Mailbox
from .posting import Posting
from .workers import Workers

NOTHING: PMap[str, bool] = pmap()


class Delivery:
    """Mailboxes for good, and workers from `start` to `stop`."""

    def __init__(
        self, workers: int, max_pending: int, decode: Callable[[str], Any], fatal: Callable[[], None]
    ) -> None:
        self._count = workers
        self._calls = Calls(decode, self.event, fatal)
        self._workers = Workers(workers, self._run, self._calls.fan, self._through)
        self._calls.released = self._workers.release
        self._calls.offered = lambda box: self._workers.offer((box,))
        self._boxes = Boxes(max_pending)
        self._posting = Posting(self._calls, self._boxes, self._workers)
        self._active: PMap[str, bool] = NOTHING
        self._published = EMPTY

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
        self._offer(ready)
        for name, ids in touched:
            if name not in reg.channels:
                self._posting.forget(name)
            self._forget(reg, ids if ids is not None or name in reg.channels else _subscribers(old, name))

    def _begin(self, reg: Registry, touched: Sequence[Touched]) -> list[Mailbox]:
        """New subscriptions of ids that have something waiting from earlier ones."""
        before, self._published = self._published, reg
        ready: list[Mailbox] = []
        if not self._workers.running:
            return ready  # nothing waits
        for name, ids in touched:
            for id in ids or ():
                box = self._boxes.get(id)
                if box is None or not box.busy:
                    continue
                was, is_now = (registry.stands_in(r, id, name) for r in (before, reg))
                if is_now and not was and box.begin(name):
                    ready.append(box)
        return ready

    def connected(self, active: Callable[[], PMap[str, bool]], well: datetime) -> None:
        """`active()` is listened to, and nothing that came on this session has been posted yet."""
        with self._calls.telling:
            self._active = active()  # a change may have been made since it began
            ready = self._follow(self._published, self._calls.hearing.channels(), well)
        self._offer(ready)

    def _offer(self, boxes: Sequence[Mailbox]) -> None:
        for box in boxes:
            if box.shipped is not None:
                self._calls.reclaim_from_closed(box)
        self._workers.offer(boxes)

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
            box = self._boxes.make(id)
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
                self._boxes.remove(box)

    # -- from the listener thread, and from workers ---------------------------------------------------------

    def post(self, batch: Sequence[Any], well: datetime, give_up: Callable[[], bool]) -> int:
        """Hand over what has arrived; returns how many, fewer where `give_up()` came true at a full mailbox."""
        return self._posting.post(batch, well, give_up)

    def event(self, payload: dict[str, Any]) -> None:
        """Put an event of the notifier's own before SYSCHAN's subscribers: pid 0. From any thread."""
        self._posting.event(payload)

    def nudge(self) -> None:
        """Have a `post` that waits ask its `give_up` now."""
        self._posting.nudge()

    def _run(self, box: Mailbox) -> bool:
        shipped = self._calls.run(box)
        self._posting.taken(box)
        return shipped

    def _through(self, box: Mailbox) -> bool:
        self._posting.announce_in_time(box)
        if box.leaving and not len(box):
            with self._calls.telling:
                box.leaving = box.id not in self._published.ids
                if box.leaving and not len(box):
                    self._boxes.remove(box)
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
        self._workers.wait(lambda: not any(box.claim.locked() for box in self._boxes.all()), deadline)

    def halt(self, event: dict[str, Any] | None, well: datetime) -> None:
        """No call but of SYSCHAN's subscribers with `event` begins after this. What waits is thrown away."""
        calls = self._calls
        with calls.telling:
            if not self._workers.running:
                return
            boxes = self._boxes.all()
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
        for box in self._boxes.all():
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
        """`delivered`, `failed`, `dropped`, `pending`."""
        return self._boxes.counts()

    def heir(self, decode: Callable[[str], Any], fatal: Callable[[], None], well: datetime) -> Delivery:
        """In a forked child: one that knows what subscribers were told, without threads, and with fresh locks."""
        child = Delivery(self._count, self._boxes.limit, decode, fatal)
        hearing = child._calls.hearing = self._calls.hearing
        oldest = {box.id: box.oldest_unlocked(well) for box in self._boxes.all_unlocked()}
        hearing.lose("stopped", lambda id: oldest.get(id, well), now(), None)
        self._calls.view = EMPTY  # the child's only thread may be in one of the callbacks here
        self._calls.epoch += 1
        self._workers.void()
        return child


def _subscribers(reg: Registry, name: str) -> Iterable[Hashable]:
    entry = reg.channels.get(name)
    return entry.subscribers if entry is not None else ()
