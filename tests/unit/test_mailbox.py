"""Guarantees 4, 9 and 10: one mailbox, beside a list of places that never forgets what was put where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Notify

from pgnotifier import clock
from pgnotifier.delivery.coverage import ListenCall
from pgnotifier.delivery.mailbox import MAX_TURN, Mailbox, Run
from pgnotifier.delivery.patience import FAST, GRACE_SECONDS, RATE_SECONDS
from pgnotifier.delivery.states import NEXT, State
from pgnotifier.gap import GRAVEST_FIRST, Gap, Reason
from pgnotifier.registry import Subscription

START = datetime(2030, 1, 1, tzinfo=timezone.utc)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def call(*_: Any) -> None:
    pass


def done(box: Mailbox) -> None:
    """The hand has been handled, as far as it was."""
    box.hand = box.sub = None
    box.held = 0


def run_of(channel: str, numbers: range, since: datetime) -> Run:
    notes = [Notify(channel, str(number), 1) for number in numbers]
    return Run(channel, notes, since, 0, len(notes), list(numbers))


def numbers_in(run: Run) -> list[int]:
    """The notifications of a run, whose decoded payloads stand in the same places."""
    numbers = [int(note.payload) for note in run.notifications[run.start : run.stop]]
    assert run.payloads is not None
    assert run.payloads[run.start : run.stop] == numbers
    return numbers


def rank(reason: Reason) -> int:
    return GRAVEST_FIRST.index(reason)


@dataclass
class Place:
    """Where a notification stands in the stream; `open`: a newer one may still take the place."""

    index: int
    channel: str
    number: int
    since: datetime
    open: bool = False


class Driver:
    """A mailbox, and beside it all places in order: each waits, is in hand, was begun, or was dropped.

    Channels "a" and "b" have an `on_listen`, whose first call is told before anything is put; "plain" has none.
    """

    def __init__(self, limit: int) -> None:
        self.box = Mailbox("id", limit)
        for name in ("a", "b"):
            self.box.subs[name] = Subscription(call, on_listen=call)
        self.box.subs["plain"] = Subscription(call)
        self.places: list[Place] = []
        self.waiting: list[Place] = []
        self.taken: list[Place] = []
        self.dropped: list[Place] = []
        self.told: list[tuple[int, str, Gap | None]] = []  # how many places stand before it, channel, gap
        self.stream: list[Place | ListenCall] = []  # what the subscriber was called with
        self.serial = self.clock = 0

    # -- in ------------------------------------------------------------------------------------------------

    def put(self, channel: str, count: int) -> None:
        self._first(channel)
        run = self._run(channel, count)
        for number in numbers_in(run):
            self._place(channel, number, False)
        self.box.put(run)

    def put_latest(self, channel: str, count: int) -> None:
        self._first(channel)
        run = self._run(channel, count)
        place = next((p for p in self.waiting if p.open and p.channel == channel), None)
        if place is None:
            self._place(channel, self.serial, True)
        else:
            place.number = self.serial
        self.box.put_latest(run)

    def tell(self, channel: str, kind: int) -> None:
        if channel != "plain":
            self._first(channel)
            reason = GRAVEST_FIRST[kind % 3]
            self._tell(channel, Gap(channel, reason, at(self.clock - kind), at(self.clock), 0))

    def _first(self, channel: str) -> None:
        if channel != "plain" and not any(name == channel for _, name, _ in self.told):
            self._tell(channel, None)

    def _tell(self, channel: str, gap: Gap | None) -> None:
        self.box.tell(ListenCall(channel, gap))
        first = gap is None and self.waiting  # it is made before all that waits
        self.told.append((self.waiting[0].index if first else len(self.places), channel, gap))
        for place in self.waiting:
            if place.channel == channel:
                place.open = False  # what comes after the call has to stand behind it

    def _run(self, channel: str, count: int) -> Run:
        first, self.serial = self.serial + 1, self.serial + count
        return run_of(channel, range(first, first + count), at(self.clock))

    def _place(self, channel: str, number: int, open: bool) -> None:
        place = Place(len(self.places), channel, number, at(self.clock), open)
        self.places.append(place)
        self.waiting.append(place)

    def time(self, _: str, seconds: int) -> None:
        self.clock += seconds

    # -- out -----------------------------------------------------------------------------------------------

    def take(self, _: str, turn: int) -> None:
        box = self.box
        if box.hand is not None:
            return
        box.turn = turn
        assert box.take() == (box.hand is not None)
        if box.hand is None:
            assert not box.entries
            assert not self.waiting
        elif isinstance(box.hand, Run):
            size = box.hand.stop - box.hand.start
            assert 1 <= size <= min(turn, max(1, box.limit // 8))
            self.taken, self.waiting = self.waiting[:size], self.waiting[size:]
            assert [p.number for p in self.taken] == numbers_in(box.hand)
            assert {p.channel for p in self.taken} == {box.hand.channel}
            for place in self.taken:
                place.open = False
        if box.hand is not None:
            assert box.sub is box.subs[box.hand.channel]

    def handled(self, _: str, back: int) -> None:
        """The hand was handled, but for the last `back` of it, which go back."""
        hand, box = self.box.hand, self.box
        if isinstance(hand, ListenCall):
            if back:
                done(box)
                box.put_back(hand)
                return
            self.stream.append(hand)
        elif hand is not None:
            begun = len(self.taken) - min(back, len(self.taken))
            self.stream += self.taken[:begun]
            rest, self.taken = self.taken[begun:], []
            if rest:
                self.waiting[:0] = rest
                done(box)
                box.put_back(hand.part(hand.start + begun, hand.stop))
                return
        done(box)

    def drop(self, _: str, count: int) -> None:
        count = min(count, len(self.waiting))
        if not count:
            return
        room, gone = self.box.room, self.waiting[:count]
        assert self.box.drop(count, at(self.clock)) == Counter(place.channel for place in gone)
        assert self.box.room == room + count
        self.waiting = self.waiting[count:]
        self.dropped += gone

    # -- judgement -----------------------------------------------------------------------------------------

    def check(self) -> None:
        box = self.box
        assert [n for run in box.entries if isinstance(run, Run) for n in numbers_in(run)] == [
            place.number for place in self.waiting
        ]
        assert box.waiting == len(self.waiting)
        assert len(box) == len(self.waiting) + max(0, len(self.taken) - 1)
        assert box.room == box.limit - len(box)
        assert set(box.latest) == {place.channel for place in self.waiting if place.open}
        assert box.taken == len(self.places) - len(self.dropped) - len(self.waiting)

    def finish(self) -> None:
        self.handled("", 0)
        while self.box.entries:
            self.take("", 8)
            self.handled("", 0)
            self.check()
        assert not self.box.take()

    def judge(self) -> None:
        """The whole stream: order, sums, and every call of `on_listen` where it belongs."""
        begun = [x for x in self.stream if isinstance(x, Place)]
        assert [p.index for p in begun] == sorted(p.index for p in begun)
        assert sorted(p.index for p in (*begun, *self.dropped)) == list(range(len(self.places)))
        edges = [-1, *(p.index for p in begun), len(self.places)]
        calls: list[list[ListenCall]] = [[]]
        for x in self.stream:
            if isinstance(x, ListenCall):
                calls[-1].append(x)
            else:
                calls.append([])
        for low, high, between in zip(edges[:-1], edges[1:], calls, strict=True):
            for channel in ("a", "b", "plain"):
                gone = [p for p in self.dropped if low < p.index < high and p.channel == channel]
                due = [gap for before, name, gap in self.told if name == channel and low < before <= high]
                self._judge([c.gap for c in between if c.channel == channel], due, gone, channel)
        for channel in ("a", "b"):
            gaps = [x.gap for x in self.stream if isinstance(x, ListenCall) and x.channel == channel]
            assert gaps[:1] in ([], [None]), "the first call stays first"

    @staticmethod
    def _judge(made: list[Gap | None], due: list[Gap | None], gone: list[Place], channel: str) -> None:
        """The calls on a channel between two notifications; `gone` are those that were dropped there."""
        gaps = [gap for gap in made if gap is not None]
        if channel == "plain":
            assert not made
            return
        assert made.count(None) == due.count(None)
        known = [gap for gap in due if gap is not None]
        assert sum(gap.dropped or 0 for gap in gaps) == len(gone)
        assert bool(gaps) == bool(known or gone)
        if gaps:
            assert min(g.since for g in gaps) == min(*(g.since for g in known), *(p.since for p in gone), FAR, FAR)
        for gap in known:
            assert any(
                g.since <= gap.since and g.until >= gap.until and rank(g.reason) <= rank(gap.reason) for g in gaps
            )
        assert {g.reason for g in gaps} <= {g.reason for g in known} | ({"overflow"} if gone else set())


FAR = at(10**6)
names = st.sampled_from(["a", "a", "b", "plain"])
nothing = st.just("")
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), names, st.integers(1, 6)),
        st.tuples(st.just("put_latest"), names, st.integers(1, 3)),
        st.tuples(st.just("tell"), names, st.integers(0, 5)),
        st.tuples(st.just("take"), nothing, st.integers(1, 8)),
        st.tuples(st.just("handled"), nothing, st.sampled_from([0, 0, 1, 2, 5])),
        st.tuples(st.just("drop"), nothing, st.integers(1, 5)),
        st.tuples(st.just("time"), nothing, st.integers(0, 5)),
    ),
    max_size=60,
)


def driven(ops: list[tuple[str, str, int]], limit: int) -> Driver:
    driver = Driver(limit)
    for op, channel, number in ops:
        getattr(driver, op)(channel, number)
        driver.check()
    return driver


@settings(max_examples=600, deadline=None)
@given(operations, st.integers(1, 80))
def test_a_mailbox_forgets_nothing_but_what_it_tells(ops: list[tuple[str, str, int]], limit: int) -> None:
    """Guarantees 9 and 10: order, latest in its place, exact sums, gaps where notifications were dropped."""
    driver = driven(ops, limit)
    driver.finish()
    driver.judge()


def runs_in(box: Mailbox, channel: str | None = None) -> list[Run]:
    return [entry for entry in box.entries if isinstance(entry, Run) and channel in (None, entry.channel)]


def calls_in(box: Mailbox, channel: str) -> list[ListenCall]:
    return [entry for entry in box.entries if isinstance(entry, ListenCall) and entry.channel == channel]


@settings(max_examples=400, deadline=None)
@given(operations, st.integers(1, 80), st.sampled_from(["a", "b"]), st.integers(-1, 5))
def test_what_is_told_first_is_told_before_all_that_waits(
    ops: list[tuple[str, str, int]], limit: int, channel: str, kind: int
) -> None:
    """Guarantee 10: a call that could not be made is made first, or the first call says what it would have said."""
    box = driven(ops, limit).box
    other = "b" if channel == "a" else "a"
    runs, others, before = runs_in(box), calls_in(box, other), calls_in(box, channel)
    gap = None if kind < 0 else Gap(channel, GRAVEST_FIRST[kind % 3], at(-kind), at(10**5), kind)
    mine = ListenCall(channel, gap)
    box.tell_first(mine)
    assert runs_in(box) == runs
    assert calls_in(box, other) == others
    after = calls_in(box, channel)
    first = box.entries[0]
    assert isinstance(first, ListenCall)
    assert first.channel == channel
    assert first is after[0]
    if gap is None:
        assert first is mine
        assert after[1:] == before
        return
    told = first.gap
    assert told is not None
    assert told.since <= gap.since
    assert told.until >= gap.until
    assert rank(told.reason) <= rank(gap.reason)
    assert sum(c.gap.dropped or 0 for c in after if c.gap) == kind + sum(c.gap.dropped or 0 for c in before if c.gap)
    merged = next((c for c in before if c.gap is not None), None)
    assert after[1:] == [c for c in before if c is not merged]


@settings(max_examples=400, deadline=None)
@given(operations, st.integers(1, 80), st.sampled_from(["a", "b", "plain"]))
def test_a_purge_leaves_the_other_channels_as_they_are(
    ops: list[tuple[str, str, int]], limit: int, channel: str
) -> None:
    """Guarantees 4 and 10: nothing of the channel is left, its calls are returned, and the oldest moment."""
    driver = driven(ops, limit)
    box = driver.box
    hand, sub, held, calls = box.hand, box.sub, box.held, calls_in(box, channel)
    kept = [entry for entry in box.entries if entry.channel != channel]
    voided = hand is not None and hand.channel == channel
    gone = [p for p in (*driver.taken, *driver.waiting) if p.channel == channel]
    latest = {name: place for name, place in box.latest.items() if name != channel}
    assert box.loss(channel, FAR) == (min((p.since for p in gone), default=FAR), calls)
    box.purge(channel)
    assert list(box.entries) == kept
    assert box.latest == latest
    assert (box.hand, box.sub, box.held) == ((hand, None, 0) if voided else (hand, sub, held))
    assert box.loss(channel, FAR) == (FAR, []), "a hand that is void counts once"
    driver.waiting = [p for p in driver.waiting if p.channel != channel]
    assert box.waiting == len(driver.waiting)


def test_a_stuck_mailbox_keeps_the_exact_moment_and_one_call() -> None:
    """Guarantee 10: `since` is the last moment at which nothing was missed, however long the call is stuck."""
    box = Mailbox("id", 4)
    box.subs["a"] = Subscription(call, on_listen=call)
    box.put(run_of("a", range(1), at(0)))
    assert box.take()
    for i in range(1, 100):
        if box.room < 1:
            assert box.drop(1, at(i)) == {"a": 1}
        box.put(run_of("a", range(i, i + 1), at(i)))
        assert len(box.entries) <= 5
    done(box)
    assert box.take()
    assert isinstance(box.hand, ListenCall)
    assert box.hand.gap == Gap("a", "overflow", at(1), at(99), 95)


def test_room_counts_what_was_taken_and_not_begun() -> None:
    """Guarantee 9: at most `max_pending`, with what a worker has in hand."""
    box = Mailbox("id", 80)
    box.subs["a"] = Subscription(call)
    box.put(run_of("a", range(80), at(0)))
    assert (box.room, box.has_room) == (0, False)
    box.turn = MAX_TURN
    assert box.take()
    assert isinstance(box.hand, Run)
    assert numbers_in(box.hand) == list(range(10))
    assert (box.room, len(box)) == (1, 79)  # the one that is being handled waits no longer
    rest = box.hand.part(3, 10)
    done(box)
    box.put_back(rest)
    assert (box.hand, box.sub) == (None, None)
    assert (box.room, len(box), box.taken) == (3, 77, 3)
    for _ in range(5):
        assert box.take()
        done(box)
    assert (box.room, box.has_room) == (50, True)


def test_what_nobody_wants_any_more_is_not_taken() -> None:
    """Guarantee 10: a call waits for a subscription whose new callback has no on_listen."""
    box = Mailbox("id", 10)
    box.subs["a"] = Subscription(call, on_listen=call)
    box.tell(ListenCall("a", None))
    box.put(run_of("a", range(3), at(0)))
    box.subs["a"] = Subscription(call)
    assert box.drop(1, at(1)) == {"a": 1}
    assert [entry for entry in calls_in(box, "a") if entry.gap is not None] == []
    assert box.take()
    assert isinstance(box.hand, Run)


def test_the_first_call_comes_before_all_that_waits_and_what_is_dropped_stays_behind_it() -> None:
    """Guarantee 10: a callback is replaced by one with `on_listen` while notifications wait."""
    box = Mailbox("id", 10)
    box.subs["a"] = Subscription(call)
    box.put(run_of("a", range(3), at(0)))
    box.subs["a"] = Subscription(call, on_listen=call)
    box.tell(ListenCall("a", None))
    assert box.drop(2, at(1)) == {"a": 2}
    first, gap = calls_in(box, "a")
    assert [*box.entries][:2] == [first, gap]
    assert first.gap is None
    assert gap.gap is not None
    assert gap.gap.dropped == 2


def test_one_notification_for_a_plain_function_is_taken_with_others() -> None:
    """Guarantee 4: and nothing that may be replaced, or is not for a worker."""
    box = Mailbox("id", 10)
    assert not box.take_one()
    for sub, size in ((Subscription(call, awaits=True), 1), (Subscription(call), 2), (None, 1)):
        box = Mailbox("id", 10)
        if sub is not None:
            box.subs["a"] = sub
        box.put(run_of("a", range(size), at(0)))
        assert not box.take_one()
        assert (len(box), box.taken, box.hand) == (size, 0, None)
    box.put_latest(run_of("b", range(1), at(0)))
    box.subs["a"] = Subscription(call)
    assert not box.take_one()
    box = Mailbox("id", 10)
    box.subs["a"] = Subscription(call, on_listen=call)
    box.tell(ListenCall("a", None))
    assert not box.take_one()
    box.take()
    done(box)
    box.put(run_of("a", range(1), at(0)))
    assert box.take_one()
    assert (len(box), box.room, box.taken, box.sub) == (0, 10, 1, box.subs["a"])
    assert not box.entries


def test_a_clock_that_was_set_back_makes_the_gap_of_a_drop_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 10: `since` is never later than the oldest notification that was dropped."""
    box = Mailbox("id", 10)
    box.subs["a"] = Subscription(call, on_listen=call)
    box.put(run_of("a", range(3), at(100)))
    monkeypatch.setattr(clock, "_set_back", [(at(105), timedelta(seconds=60))])
    box.drop(1, at(50))
    (told,) = calls_in(box, "a")
    assert told.gap is not None
    assert told.gap.since <= at(40)


def test_a_latest_that_is_in_hand_keeps_its_notification() -> None:
    """Guarantee 9: a newer one takes the place of what waits, and of nothing else."""
    box = Mailbox("id", 10)
    box.subs["a"] = Subscription(call, latest=True)
    box.put_latest(run_of("a", range(3), at(0)))
    box.put_latest(run_of("a", range(3, 5), at(1)))
    assert box.take()
    hand = box.hand
    assert isinstance(hand, Run)
    assert (numbers_in(hand), hand.since) == ([4], at(0))
    box.put_latest(run_of("a", range(5, 6), at(2)))
    assert numbers_in(hand) == [4]
    assert [numbers_in(run) for run in runs_in(box)] == [[5]]


@pytest.mark.parametrize(("rate", "fast"), [(FAST * 2, True), (FAST // 2, False)])
def test_how_fast_a_full_mailbox_empties_is_known_after_a_moment(rate: int, fast: bool) -> None:
    """Guarantee 9: the listener waits without limit for a subscriber that takes more than 10,000 a second."""
    box = Mailbox("id", 1000)
    assert box.rate.is_fast(0.0, box.taken) is None
    box.rate.begin(0.0, box.taken)
    assert box.rate.is_fast(GRACE_SECONDS / 2, box.taken) is None
    box.taken += int(rate * GRACE_SECONDS)
    assert box.rate.is_fast(GRACE_SECONDS, box.taken) is fast
    box.rate.begin(GRACE_SECONDS, box.taken)  # it was already
    box.rate.end(GRACE_SECONDS, box.taken)
    assert box.rate.is_fast(1000.0, box.taken) is fast  # a time with room counts for nothing
    box.taken += 10**9
    box.rate.end(2000.0, box.taken)
    assert box.rate.is_fast(2000.0, box.taken) is fast


def test_a_subscriber_that_becomes_slow_is_found_slow() -> None:
    """Guarantee 9: what was measured long ago counts less and less."""
    box, moment = Mailbox("id", 1000), 0.0
    for rate in [FAST * 4] * 40 + [0] * 40:
        box.rate.begin(moment, box.taken)
        moment += RATE_SECONDS / 4
        box.taken += int(rate * RATE_SECONDS / 4)
        box.rate.end(moment, box.taken)
        if rate:
            assert box.rate.is_fast(moment, box.taken)
    assert box.rate.is_fast(moment, box.taken) is False


def refused(change: Callable[[State], None], state: State) -> None:
    with pytest.raises(RuntimeError, match=state.name):
        change(state)


@pytest.mark.parametrize("begin", State)
@pytest.mark.parametrize("end", State)
def test_a_mailbox_takes_every_step_of_the_table_and_no_other(begin: State, end: State) -> None:
    box = Mailbox("id", 10)
    box.state = begin
    if end in NEXT[begin]:
        box.to(end)
        assert box.state is end
    else:
        refused(box.to, end)
        assert box.state is begin
