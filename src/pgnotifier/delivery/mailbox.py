"""What waits for one subscriber id: bounded, in order, and exact about what it threw away (contract 9).

The listener thread puts, one worker at a time grabs; every method holds the mailbox's own lock, for as long as it
moves items and no longer. No user code.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from datetime import datetime
from typing import Any

from ..gap import Gap, merge
from ..registry import EMPTY, SYSCHAN, Registry
from .coverage import Telling
from .items import Begin, Item, Latest

PATIENCE = 1.0  # seconds that the listener waits for a full mailbox in all, renewed when it has been empty
FAST = 10_000  # a second: the listener waits without limit for a subscriber that takes more
WINDOW = 0.5  # seconds of waiting over which that is measured
MOST = 256  # items that a worker takes at a time


class Mailbox:
    """`claimed`: it is in the queue of the ready, on a worker or on an event loop. That lock is the claim."""

    def __init__(self, id: Hashable, limit: int) -> None:
        self.id = id
        self.limit = limit
        self.lock: Any = threading.RLock()  # reentrant: a signal handler may stop the notifier anywhere
        self.claim: threading.Lock = threading.Lock()
        self.loop: Any = None  # the event loop that has the claim
        self.awaited: Any = None  # what that loop is in the middle of
        self.shipped: deque[Any] | None = None  # to that loop, and not begun
        self.leaving = True  # look whether its id is still subscribed somewhere, when it is through
        self.seen: Registry = EMPTY  # the registry that `subs` was read from
        self.subs: dict[str, Any] = {}
        self.turn = 8  # items to take at a time, as fast as the callback is
        self.waited_for = False  # the listener waits for room
        self.announced: float = 0.0  # monotonic seconds, when an event last told of an overflow
        self.taken: int = 0
        self.patience: float
        self.renew()
        self.items: deque[Any] = deque()
        self.fanned: datetime | None = None  # it is in a Fanout: before that moment all had been received
        self._latest: dict[str, Latest] = {}
        self.held: int = 0  # taken, and not begun
        self._added = 0
        self._marks: deque[tuple[int, datetime]] = deque()
        self._first: dict[str, bool] = {}  # channels whose first telling comes before all that waits
        self._lost: dict[str, Gap] = {}  # and gaps of what was thrown away there
        self.barriers: dict[str, int] = {}  # channels with a Begin among the items, and how many
        self.unannounced: dict[str, int] = {}  # how many of them no event has told
        self.delivered: int = 0
        self.failed: int = 0
        self.dropped: int = 0

    def renew(self) -> None:
        self.patience = PATIENCE
        self._window = (0.0, 0)  # seconds waited, and how many were taken in them

    def waited(self, seconds: float, taken: int) -> None:
        """The listener has waited for room, in which `taken` items were taken: what its patience lost by that."""
        waited, before = self._window
        waited, taken = waited + seconds, taken + before
        if waited < WINDOW and waited < self.patience:
            self._window = (waited, taken)
            return
        self._window = (0.0, 0)
        if taken <= FAST * waited:
            self.patience -= waited

    def announce(self) -> dict[str, int]:
        """How many of each channel were dropped since the last time."""
        with self.lock:
            told, self.unannounced = self.unannounced, {}
        return told

    def __len__(self) -> int:
        return len(self.items) + self.held

    @property
    def waiting(self) -> bool:
        return bool(self.items)

    @property
    def room(self) -> int:
        return self.limit - len(self.items) - self.held

    def put(self, items: Sequence[Item], well: datetime) -> None:
        """Append; the caller has seen to the room. All before `well` has been received."""
        with self.lock:
            self._mark(well)
            self.items.extend(items)
            self._added += len(items)

    def tell(self, telling: Telling, well: datetime) -> None:
        """Append what is to be told; what comes after it of that channel stands behind it."""
        with self.lock:
            if telling.channel in self._latest:
                self._latest[telling.channel].open = False
            last = self.items[-1] if self.items else None
            if type(last) is Telling and last.channel == telling.channel and last.gap and telling.gap:
                self.items[-1] = Telling(telling.channel, merge(last.gap, telling.gap))
                return
            self._mark(well)
            self.items.append(telling)
            self._added += 1

    def put_latest(self, item: Any, well: datetime) -> bool:
        """Take the place of the one of that channel that still waits; whether there was one."""
        with self.lock:
            place = self._latest.get(item.channel)
            if place is not None and place.open:
                place.item = item
                return True
            self._mark(well)
            place = self._latest[item.channel] = Latest(item)
            self.items.append(place)
            self._added += 1
            return False

    def grab(self) -> list[Item]:
        """Take some of the oldest, with what is to be told before them."""
        with self.lock:
            items = self.items
            self._prune()
            size = min(len(items), self.turn, self.limit // 8 or 1)
            if self._latest:
                # A place stays open until it is its turn: it can only be the first that is taken.
                hand = [items.popleft() for _ in range(min(1, size))]
                while len(hand) < size and type(items[0]) is not Latest:
                    hand.append(items.popleft())
                size = len(hand)
                if hand and type(hand[0]) is Latest:
                    hand[0] = self._unwrap(hand[0])
            elif size == len(items):
                hand = list(items)
                items.clear()
            else:
                hand = [items.popleft() for _ in range(size)]
            if not items:
                self.renew()
            self.held = max(0, size - 1)
            self.taken += size
            if self._lost or self._first:
                hand = [*self._before(), *hand]
        return hand

    @property
    def busy(self) -> bool:
        """Whether anything waits or is being handled."""
        return bool(self.items) or self.claim.locked()

    def begin(self, channel: str) -> bool:
        """Have what waits or is being handled on that channel skipped; whether there is anything."""
        with self.lock:
            busy = self.busy
            if busy:
                if channel in self._latest:
                    self._latest[channel].open = False
                self.items.append(Begin(channel))
                self._added += 1
                self.barriers[channel] = self.barriers.get(channel, 0) + 1
            return busy

    def begun(self, channel: str) -> None:
        """That place was reached."""
        with self.lock:
            self._begun(channel)

    def _begun(self, channel: str) -> None:
        left = self.barriers.pop(channel, 1) - 1
        if left:
            self.barriers[channel] = left

    def give_back(self, items: Sequence[Item]) -> None:
        """Put what was not begun before all that waits, and before what is to be told of drops since then."""
        if not items:
            return
        with self.lock:
            self.taken -= len(items)
            self.held = max(0, self.held - len(items))
            marks = self._marks
            if marks:
                place = self._added - len(self.items)
                before = well = marks[0][1]
                while marks and marks[0][0] <= place:
                    well = marks.popleft()[1]
                marks.appendleft((place, well))
                marks.appendleft((place - len(items), before))
            self.items.extendleft(reversed([*items, *self._before()]))

    def put_first(self, item: Item) -> None:
        """By whoever has the claim, before all that came since it was taken."""
        with self.lock:
            self._marks.appendleft((self._added - len(self.items) - 1, self.fanned or self._marks[0][1]))
            self.items.appendleft(item)

    def done(self) -> None:
        """The grabbed ones are through."""
        self.held, self.fanned = 0, None

    def drop(self, count: int, moment: datetime) -> int:
        """Throw away the oldest `count`, to be told of where they stood; returns how many were notifications."""
        gone: dict[str, int] = {}
        with self.lock:
            marks, first = self._marks, self._added - len(self.items)
            while len(marks) > 2 and marks[2][0] <= first:
                del marks[1]  # the first belongs to what has been taken
            since = marks[1][1] if len(marks) > 1 and marks[1][0] <= first else marks[0][1]
            for _ in range(min(count, len(self.items))):
                item = self.items.popleft()
                if type(item) is Latest:
                    self._unwrap(item)
                channel = item.channel
                if type(item) is Begin:
                    self._begun(channel)
                elif type(item) is not Telling:
                    gone[channel] = gone.get(channel, 0) + 1
                elif item.gap is None:
                    self._first[channel] = True
                else:
                    self._lost[channel] = merge(self._lost.get(channel), item.gap)
            for channel, number in gone.items():
                self.unannounced[channel] = self.unannounced.get(channel, 0) + number
                self._lost[channel] = merge(self._lost.get(channel), Gap(channel, "overflow", since, moment, number))
                self.dropped += number
        return sum(gone.values())

    def clear(self) -> list[Telling]:
        """Throw away all but SYSCHAN's; returns what was to be told."""
        with self.lock:
            untold = [*self._before(), *(item for item in self.items if type(item) is Telling)]
            kept = [item for item in self.items if type(item) is not Telling and item.channel == SYSCHAN]
            self.barriers = {c: n for c, n in self.barriers.items() if c == SYSCHAN}
            self.items.clear()
            self.items.extend(kept)
            self._latest = {c: place for c, place in self._latest.items() if c == SYSCHAN}
        return untold

    def oldest(self, well: datetime) -> datetime:
        """Before that moment nothing is waiting or being handled; `well` where nothing is."""
        with self.lock:
            return self.oldest_unlocked(well)

    def oldest_unlocked(self, well: datetime) -> datetime:
        """For a forked child, in which the lock may be held for ever."""
        if (fanned := self.fanned) is not None:
            return min(well, fanned)
        busy = self.items or self.held or self.claim.locked()
        return min(well, self._marks[0][1]) if busy and self._marks else well

    def _before(self) -> list[Telling]:
        told = [Telling(channel, None) for channel in self._first]
        told += [Telling(channel, gap) for channel, gap in self._lost.items()]
        self._first, self._lost = {}, {}
        return told

    def _prune(self) -> None:
        first = self._added - len(self.items)
        while len(self._marks) > 1 and self._marks[1][0] <= first:
            self._marks.popleft()

    def _mark(self, well: datetime) -> None:
        place, marks = self._added, self._marks
        while marks and marks[-1][1] > well:  # after an event, whose moment is its own
            place = marks.pop()[0]
        if not marks or marks[-1][1] != well:
            marks.append((place, well))

    def _unwrap(self, place: Latest) -> Any:
        if self._latest.get(place.channel) is place:
            del self._latest[place.channel]
        return place.item
