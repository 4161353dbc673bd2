"""What waits for one subscriber id: plain data. Every method is called under the dispatcher's lock.

No threads, no clock and no user code here. `NEXT` is the table of a mailbox's states; `docs/internals.md` shows it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from ..clock import earliest
from ..gap import Gap
from .coverage import ListenCall
from .patience import Rate
from .runs import Entry, Latest, Run

if TYPE_CHECKING:
    from ..registry import Subscription

MAX_TURN = 256  # notifications that are taken at a time
ROOM_SHARE = 2  # the listener is woken when half of a full mailbox is free


class State(Enum):
    """Who acts next on a mailbox."""

    IDLE = "nothing waits"
    READY = "it stands in the queue for workers"
    RUNNING = "a worker makes its calls"
    AWAITING = "an event loop makes its calls"
    PAUSED = "its on_listen failed, and is called again later"


IDLE, READY, RUNNING, AWAITING, PAUSED = State

NEXT: dict[State, frozenset[State]] = {
    IDLE: frozenset({READY}),
    READY: frozenset({RUNNING, IDLE}),  # IDLE: what waited has been thrown away
    RUNNING: frozenset({IDLE, READY, AWAITING, PAUSED}),
    AWAITING: frozenset({IDLE, READY, PAUSED, RUNNING}),  # RUNNING: the event loop was found closed
    PAUSED: frozenset({READY}),
}


class Mailbox:
    """The queue of one id, what is in hand, and what a turn needs of the registry.

    `hand` is what is being handled, under the subscription `sub`. Whoever handles it looks at `sub` before each call:
    None where the hand is void (muted, unsubscribed, stopped), another one where the callback was replaced.
    """

    __slots__ = (
        "announced",
        "attempt",
        "batch",
        "blocking",
        "entries",
        "first",
        "hand",
        "held",
        "id",
        "latest",
        "limit",
        "rate",
        "resume_at",
        "state",
        "sub",
        "subs",
        "taken",
        "turn",
        "unannounced",
        "waiting",
    )

    def __init__(self, id: Hashable, limit: int) -> None:
        self.id, self.limit = id, limit
        self.state = IDLE
        self.subs: dict[str, Subscription] = {}  # by channel, those that are called now
        self.entries: deque[Entry] = deque()
        self.waiting = 0  # notifications in `entries`
        self.hand: Entry | None = None
        self.sub: Subscription | None = None
        self.held = 0  # notifications in hand whose call has not begun, as counted when they were taken
        self.turn = 8  # notifications to take at a time: more where the callback is fast
        self.latest: dict[str, Latest] = {}  # places that are open
        self.first: set[str] = set()  # channels whose first call of on_listen waits
        self.batch: Any = None  # what an event loop has of it
        self.attempt, self.resume_at = 0, 0.0  # failed calls of on_listen, and when it is called again (monotonic)
        self.taken = 0
        self.blocking = False  # the listener waits for room here
        self.rate = Rate()
        self.unannounced: dict[str, int] = {}  # by channel, what was dropped and no event has told
        self.announced = 0.0  # monotonic seconds of the last such event

    def to(self, state: State) -> None:
        """Change the state. Raises `RuntimeError`, nothing changed, where `NEXT` does not allow it."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"a mailbox can't go from {self.state.name} to {state.name}")
        self.state = state

    def __len__(self) -> int:
        return self.waiting + self.held

    @property
    def room(self) -> int:
        return self.limit - self.waiting - self.held

    @property
    def has_room(self) -> bool:
        """Whether a full mailbox has room that is worth posting for."""
        return not self.entries or self.room * ROOM_SHARE >= self.limit

    # -- in ------------------------------------------------------------------------------------------------

    def put(self, run: Run) -> None:
        """Append; the caller has seen to the room."""
        self.entries.append(run)
        self.waiting += run.stop - run.start

    def put_latest(self, run: Run) -> None:
        """Append the run's last notification, or have it take the place that is open for its channel."""
        place = self.latest.get(run.channel)
        if place is not None:
            place.replace(run)
            return
        place = self.latest[run.channel] = Latest(
            run.channel, run.notifications, run.since, run.decoded, run.stop - 1, run.stop
        )
        self.put(place)

    def tell(self, call: ListenCall) -> None:
        """Append a call of `on_listen`; nothing that comes later takes a place before it."""
        self.latest.pop(call.channel, None)
        if call.gap is None:
            self.first.add(call.channel)
        last = self.entries[-1] if self.entries else None
        both = last.merged(call) if isinstance(last, ListenCall) else None
        if both is not None:
            self.entries.pop()
        self.entries.append(both or call)

    def tell_first(self, call: ListenCall) -> None:
        """Have `call` made before all that waits, together with one that waits for the same channel."""
        if call.gap is None:
            self.first.add(call.channel)
        for place, entry in enumerate(self.entries):
            if isinstance(entry, ListenCall) and entry.channel == call.channel and entry.gap is None:
                return  # a first call covers everything before it
            both = call.merged(entry)
            if both is not None:
                call = both
                del self.entries[place]
                break
        self.entries.appendleft(call)

    # -- out -----------------------------------------------------------------------------------------------

    def take(self) -> bool:
        """Take the oldest entry, or the first part of a long run, into the hand; False where there is none."""
        entries = self.entries
        while entries:
            entry = entries.popleft()
            sub = self.subs.get(entry.channel)
            if isinstance(entry, ListenCall):
                if entry.gap is None:
                    self.first.discard(entry.channel)
                if sub is None or sub.on_listen is None:
                    continue  # the callback was replaced by one without on_listen
            else:
                size = entry.stop - entry.start
                if self.latest and self.latest.get(entry.channel) is entry:
                    del self.latest[entry.channel]
                if size > 1 and size > (most := min(self.turn, self.limit // 8 or 1)):
                    entries.appendleft(entry.part(entry.start + most, entry.stop))
                    entry, size = entry.part(entry.start, entry.start + most), most
                self.waiting -= size
                self.taken += size
                if sub is None:
                    continue
                self.held = size - 1
            self.hand, self.sub = entry, sub
            return True
        return False

    def done(self) -> None:
        """The hand has been handled."""
        self.hand = self.sub = None
        self.held = 0

    def put_back(self, rest: Entry) -> None:
        """Have what of the hand was not begun stand before all that waits."""
        self.done()
        self.entries.appendleft(rest)
        if isinstance(rest, ListenCall) and rest.gap is None:
            self.first.add(rest.channel)
        if isinstance(rest, Run):
            self.waiting += rest.stop - rest.start
            self.taken -= rest.stop - rest.start

    def drop(self, count: int, until: datetime) -> dict[str, int]:
        """Throw away the oldest `count` notifications that wait; returns how many of each channel.

        A call of `on_listen` with the gap takes their place. Calls that stood among them come with it.
        """
        gone: dict[str, int] = {}
        calls: dict[tuple[str, bool], ListenCall] = {}  # of each channel a first one, and one with a gap
        entries = self.entries
        while entries and (count > 0 or type(entries[0]) is ListenCall):
            entry = entries.popleft()
            channel = entry.channel
            if isinstance(entry, Run):
                size = min(count, entry.stop - entry.start)
                if self.latest.get(channel) is entry:
                    del self.latest[channel]
                if size < entry.stop - entry.start:
                    entries.appendleft(entry.part(entry.start + size, entry.stop))
                count -= size
                self.waiting -= size
                gone[channel] = gone.get(channel, 0) + size
                sub = self.subs.get(channel)
                told = (channel, False) in calls or channel not in self.first  # else the first call covers it
                if sub is None or sub.on_listen is None or not told:
                    continue
                call = ListenCall(channel, Gap(channel, "overflow", earliest(entry.since), until, size))
            else:
                call = entry
            key = channel, call.gap is not None
            calls[key] = (calls[key].merged(call) if key in calls else None) or call
        entries.extendleft(reversed(calls.values()))
        return gone

    def purge(self, channel: str) -> tuple[datetime | None, list[ListenCall]]:
        """Throw away all that waits on a channel, and void the hand.

        Returns the moment before which everything thrown away had not been committed (None: there was nothing), and
        the calls of `on_listen` that will not be made.
        """
        since: datetime | None = None
        calls, hand = list[ListenCall](), self.hand
        if hand is not None and hand.channel == channel:
            if isinstance(hand, Run):
                since = hand.since
            self.done()
        kept: deque[Entry] = deque()
        for entry in self.entries:
            if entry.channel != channel:
                kept.append(entry)
            elif isinstance(entry, Run):
                since = min(since or entry.since, entry.since)
                self.waiting -= entry.stop - entry.start
            else:
                calls.append(entry)
        if len(kept) < len(self.entries):
            self.entries = kept
        self.latest.pop(channel, None)
        self.first.discard(channel)
        return since, calls
