"""The queue of one subscriber id, and the runs in it: plain data, under the state lock.

No threads, no clock and no user code here. `states.NEXT` is the table of a mailbox's states.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import length_hint
from typing import TYPE_CHECKING, Any, Protocol

from ..clock import earliest
from ..gap import Gap
from .coverage import ListenCall
from .patience import Rate
from .states import IDLE, NEXT, PULLED, State

if TYPE_CHECKING:
    from ..registry import Subscription

MAX_TURN = 256  # notifications that are taken at a time
ROOM_SHARE = 2  # the listener is woken when half of a full mailbox is free


UNKNOWN: Any = object()  # a payload that has not been decoded
FAILED: Any = object()  # a payload that can't be decoded


@dataclass(slots=True, eq=False)
class Run:
    """Notifications on one channel that arrived together: one object for all its subscribers.

    `notifications[start:stop]` is the run. Everything committed before `since` had been received when it was posted.
    If several subscribers share it, `payloads` has a place for each notification, and the first worker that needs a
    payload decodes it for all, under `lock`.
    """

    channel: str
    notifications: Sequence[Any]
    since: datetime
    start: int
    stop: int
    payloads: list[Any] | None = None
    lock: Any = None

    @property
    def size(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Run:
        return Run(self.channel, self.notifications, self.since, start, stop, self.payloads, self.lock)


Entry = Run | ListenCall


class Owner(Protocol):
    """An executor that has a mailbox in place of the workers: an event loop's batch, or a stream."""

    def notice(self) -> None:
        """Hear that something was put into the mailbox. Without the lock, on the thread that put it there."""


@dataclass(slots=True, eq=False)
class Mailbox:
    """The queue of one id, its hand, and its subscriptions.

    `hand` is what an executor has taken out, under the subscription `sub`. The executor reads `sub` before each call,
    without the lock: None if the hand is void (muted, unsubscribed, stopped), another if the callback was replaced.
    """

    id: Hashable
    limit: int  # notifications
    state: State = IDLE
    subs: dict[str, Subscription] = field(default_factory=dict)  # by channel, those that are called now
    entries: deque[Entry] = field(default_factory=deque)
    waiting: int = 0  # notifications in `entries`
    latest: dict[str, Run] = field(default_factory=dict)  # by channel, runs that newer notifications may replace
    hand: Entry | None = None
    sub: Subscription | None = None
    rest: Entry | None = None  # the part of the hand that its executor could not handle
    held: int = 0  # notifications in hand whose call has not begun, as counted when they were taken
    turn: int = 8  # notifications to take at a time: more if the callback is fast
    began: float = 0.0  # monotonic seconds when the call under way began; 0 if none is
    owner: Owner | None = None  # the executor that has it, unless workers do
    attempt: int = 0  # failed calls of on_listen
    resume_at: float = 0.0  # monotonic seconds, when it is called again
    places: Any = None  # iterates over the part of the hand that no reader has taken, if it is a stream's
    undecoded: int = 0  # notifications that its readers could not decode, not counted yet
    taken: int = 0  # notifications taken out so far
    rate: Rate = field(default_factory=Rate)
    blocking: bool = False  # the listener waits for room here
    unannounced: dict[str, int] = field(default_factory=dict)  # by channel, the number dropped since the last event
    announced: float = 0.0  # monotonic seconds of the last event `overflow`

    def to(self, state: State) -> None:
        """Change the state. Raises `RuntimeError`, nothing changed, if `NEXT` forbids it."""
        if state not in NEXT[self.state]:
            raise RuntimeError(f"a mailbox can't go from {self.state.name} to {state.name}")
        self.state = state

    def __len__(self) -> int:
        places = self.places
        return self.waiting + (self.held if places is None else length_hint(places))

    @property
    def room(self) -> int:
        return self.limit - self.waiting - self.held

    @property
    def has_room(self) -> bool:
        """True if a full mailbox has enough room to post again."""
        return not self.entries or self.room * ROOM_SHARE >= self.limit

    def pulled_by(self, owner: Owner) -> Mailbox:
        """Leave the mailbox to a stream's readers; `owner.notice()` wakes them."""
        self.owner, self.turn = owner, MAX_TURN
        self.to(PULLED)
        return self

    def follow(self, channel: str, sub: Subscription) -> None:
        """Call `sub` on the channel from now on, also for the rest of the hand if that is not void."""
        self.subs[channel] = sub
        if self.sub is not None and self.hand is not None and self.hand.channel == channel:
            self.sub = sub

    def put(self, run: Run) -> None:
        """Append a run. The caller has made room."""
        self.entries.append(run)
        self.waiting += run.size

    def put_latest(self, run: Run) -> None:
        """Append the run's last notification, or replace the one that still waits for its channel."""
        last, place = run.part(run.stop - 1, run.stop), self.latest.get(run.channel)
        if place is None:
            self.latest[run.channel] = last
            self.put(last)
        else:
            place.notifications, place.payloads, place.lock = last.notifications, last.payloads, last.lock
            place.start, place.stop = last.start, last.stop

    def tell(self, call: ListenCall) -> None:
        """Queue a call of `on_listen` behind all that waits, or, the first time, in front of it.

        Later notifications don't replace one that waits in front of the call.
        """
        self.latest.pop(call.channel, None)
        if call.gap is None:
            self.entries.appendleft(call)
            return
        both = self.entries[-1].merged(call) if self.entries and isinstance(self.entries[-1], ListenCall) else None
        if both is not None:
            self.entries.pop()
        self.entries.append(both or call)

    def tell_first(self, call: ListenCall) -> None:
        """Queue `call` in front of all that waits, merged with one that waits for the same channel."""
        for entry in self.entries:
            both = call.merged(entry)
            if both is not None:
                self.entries.remove(entry)
                call = both
                break
        self.entries.appendleft(call)

    def _pop(self, most: int) -> tuple[Entry, int]:
        """Remove the oldest entry, or the first `most` notifications of a longer run; return it and its size."""
        entry = self.entries.popleft()
        if not isinstance(entry, Run):
            return entry, 0
        if self.latest and self.latest.get(entry.channel) is entry:
            del self.latest[entry.channel]
        size = entry.stop - entry.start
        if size > most:
            self.entries.appendleft(entry.part(entry.start + most, entry.stop))
            entry, size = entry.part(entry.start, entry.start + most), most
        self.waiting -= size
        return entry, size

    def take(self) -> bool:
        """Take the oldest entry, or the first part of a long run, into the hand; return False if there is none."""
        while self.entries:
            entry, size = self._pop(min(self.turn, self.limit // 8 or 1))
            sub = self.subs.get(entry.channel)
            self.taken += size
            if sub is not None and (size or sub.on_listen is not None):  # else it was replaced by one without
                self.hand, self.sub, self.held = entry, sub, size and size - 1
                return True
        return False

    def take_one(self) -> bool:
        """Take the oldest entry if it is one notification for a plain function, and can't be replaced."""
        entry = self.entries[0] if self.entries and not self.latest else None
        sub = self.subs.get(entry.channel) if type(entry) is Run else None
        if type(entry) is not Run or entry.stop - entry.start != 1 or sub is None or sub.awaits:
            return False
        self.entries.popleft()
        self.waiting -= 1
        self.taken += 1
        self.hand, self.sub, self.held = entry, sub, 0
        return True

    def given(self) -> int:
        """Return how many of the hand a stream's readers took and could decode; 0 the second time."""
        places, self.places = self.places, None
        number = 0 if places is None or self.hand is None else self.hand.size - length_hint(places)
        failed = min(number, self.undecoded)
        self.undecoded -= failed
        return number - failed

    def put_back(self, rest: Entry) -> None:
        """Put the part of the hand that was not handled in front of all that waits."""
        self.entries.appendleft(rest)
        self.waiting += rest.size
        self.taken -= rest.size

    def drop(self, count: int, until: datetime) -> dict[str, int]:
        """Throw away the oldest `count` notifications that wait; return the number for each channel.

        A call of `on_listen` with the gap takes their place. Calls that waited among them are kept.
        """
        gone: dict[str, int] = {}
        calls: dict[tuple[str, bool], ListenCall] = {}  # for each channel a first one, and one with a gap
        while self.entries and (count > 0 or isinstance(self.entries[0], ListenCall)):
            call, size = self._pop(count)
            channel = call.channel
            if isinstance(call, Run):
                count -= size
                gone[channel] = gone.get(channel, 0) + size
                sub = self.subs.get(channel)
                if sub is None or sub.on_listen is None:
                    continue
                call = ListenCall(channel, Gap(channel, "overflow", earliest(call.since), until, size))
            key = channel, call.gap is not None
            calls[key] = (calls[key].merged(call) if key in calls else None) or call
        self.entries.extendleft(reversed(calls.values()))
        return gone

    def loss(self, channel: str, confirmed: datetime) -> tuple[datetime, list[ListenCall]]:
        """Return, of what `purge` will throw away, a time before all commits, and the calls of `on_listen`.

        Everything committed before `confirmed` has been received.
        """
        gone = [entry for entry in self.entries if entry.channel == channel]
        calls = [entry for entry in gone if isinstance(entry, ListenCall)]
        if self.sub is not None and self.hand is not None and self.hand.channel == channel:
            gone.append(self.hand)
        return min([confirmed, *(entry.since for entry in gone if isinstance(entry, Run))]), calls

    def purge(self, channel: str) -> None:
        """Throw away all that waits on a channel, and void its hand."""
        self.latest.pop(channel, None)
        if self.sub is not None and self.hand is not None and self.hand.channel == channel:
            self.sub, self.held = None, 0
        self.entries = deque(entry for entry in self.entries if entry.channel != channel)
        self.waiting = sum(entry.size for entry in self.entries)
