"""Guarantees 4, 9 and 10: one bounded mailbox, against a list of places that never forgets what was put where."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Notify

from pgnotifier.delivery.coverage import Telling
from pgnotifier.delivery.items import Event
from pgnotifier.delivery.mailbox import PATIENCE, Mailbox
from pgnotifier.gap import Gap
from pgnotifier.registry import SYSCHAN

START = datetime(2030, 1, 1, tzinfo=timezone.utc)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


FAR = at(10**6)


def note(channel: str, number: int) -> Notify:
    return Notify(channel, str(number), 1)


@dataclass
class Place:
    """Where a notification stands in the stream; `latest`: a newer one may still take it over."""

    index: int
    channel: str
    number: int
    well: datetime
    latest: bool = False


names = st.sampled_from(["a", "b"])
operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), names, st.integers(1, 6)),
        st.tuples(st.just("latest"), names, st.just(0)),
        st.tuples(st.just("first"), names, st.just(0)),
        st.tuples(st.just("gap"), names, st.just(0)),
        st.tuples(st.just("grab"), st.just(""), st.integers(1, 8)),
        st.tuples(st.just("through"), st.just(""), st.sampled_from([0, 0, 1, 2, 5])),
        st.tuples(st.just("drop"), st.just(""), st.integers(1, 5)),
        st.tuples(st.just("time"), st.just(""), st.integers(-2, 5)),
    ),
    max_size=60,
)


class Driver:
    """A mailbox, and beside it all places in order: each waits, is in the hand, was begun, or was dropped."""

    def __init__(self, limit: int) -> None:
        self.box = Mailbox("id", limit)
        self.places: list[Place] = []
        self.waiting: list[Place] = []
        self.hand: list[Any] = []
        self.taken: list[Place] = []
        self.dropped: list[Place] = []
        self.tellings: list[tuple[int, str, str]] = []  # places before it, channel, reason ("" the first time)
        self.stream: list[Any] = []  # what the subscriber was called with: places and tellings
        self.serial = self.clock = 0

    def put(self, channel: str, count: int) -> None:
        numbers = range(self.serial + 1, self.serial + count + 1)
        self.serial += count
        for number in numbers:
            self._place(channel, number, False)
        self.box.put([note(channel, number) for number in numbers], at(self.clock))

    def latest(self, channel: str, _: int) -> None:
        self.serial += 1
        place = next((p for p in self.waiting if p.latest and p.channel == channel), None)
        assert self.box.put_latest(note(channel, self.serial), at(self.clock)) == (place is not None)
        if place is None:
            self._place(channel, self.serial, True)
        else:
            place.number = self.serial

    def _place(self, channel: str, number: int, latest: bool) -> None:
        place = Place(len(self.places), channel, number, at(self.clock), latest)
        self.places.append(place)
        self.waiting.append(place)

    def first(self, channel: str, _: int) -> None:
        self._tell(channel, None)

    def gap(self, channel: str, _: int) -> None:
        self._tell(channel, Gap(channel, "connection", at(self.clock), at(self.clock), 0))

    def _tell(self, channel: str, gap: Gap | None) -> None:
        self.box.tell(Telling(channel, gap), at(self.clock))
        self.tellings.append((len(self.places), channel, "" if gap is None else gap.reason))
        for place in self.waiting:
            if place.channel == channel:
                place.latest = False  # what comes after the telling has to stand behind it

    def grab(self, _: str, turn: int) -> None:
        if not self.box.claim.acquire(False):
            return
        self.box.turn = turn
        self.hand = self.box.grab()
        count = sum(type(item) is not Telling for item in self.hand)
        self.taken, self.waiting = self.waiting[:count], self.waiting[count:]
        assert not any(p.latest for p in self.taken[1:]), "a newer one could not take its place any more"
        for place in self.taken:
            place.latest = False

    def through(self, _: str, back: int) -> None:
        """All of the hand has been handled, but for the last `back`, which go back."""
        if not self.box.claim.locked():
            return
        begun = len(self.hand) - min(back, len(self.hand))
        for item in self.hand[:begun]:
            if type(item) is Telling:
                self.stream.append(item)
            else:
                place = self.taken.pop(0)
                assert (item.channel, item.payload) == (place.channel, str(place.number))
                self.stream.append(place)
        self.box.give_back(self.hand[begun:])
        self.waiting[:0] = self.taken
        self.hand, self.taken = [], []
        self.box.done()
        self.box.claim.release()

    def drop(self, _: str, count: int) -> None:
        if not self.box.waiting:
            return
        room, kinds = self.box.room, [type(item) for item in self.box.items]
        number = self.box.drop(count, at(self.clock))
        assert self.box.room - room == min(count, len(kinds))
        assert number == len(kinds[:count]) - kinds[:count].count(Telling)
        gone, self.waiting = self.waiting[:number], self.waiting[number:]
        self.dropped += gone

    def time(self, _: str, seconds: int) -> None:
        self.clock += seconds

    def check(self) -> None:
        busy = [place.well for place in (*self.waiting, *self.taken)]
        if busy:
            assert self.box.oldest(FAR) <= min(busy)
        elif not self.box.claim.locked() and not len(self.box):
            assert self.box.oldest(FAR) == FAR
        assert self.box.dropped == len(self.dropped) == sum(self.box.unannounced.values())
        assert len(self.box) >= len(self.waiting) + max(0, len(self.taken) - 1)

    def judge(self) -> None:
        """The whole stream: order, sums, and every telling where it belongs."""
        begun = [x for x in self.stream if isinstance(x, Place)]
        assert [p.index for p in begun] == sorted(p.index for p in begun)
        assert sorted(p.index for p in (*begun, *self.dropped)) == list(range(len(self.places)))
        edges = [-1, *(p.index for p in begun), len(self.places)]
        told: list[list[Telling]] = [[]]
        for x in self.stream:
            if isinstance(x, Telling):
                told[-1].append(x)
            else:
                told.append([])
        for low, high, between in zip(edges[:-1], edges[1:], told, strict=True):
            for channel in "ab":
                gone = [p for p in self.dropped if low < p.index < high and p.channel == channel]
                gaps = [t.gap for t in between if t.channel == channel and t.gap is not None]
                assert sum(gap.dropped or 0 for gap in gaps) == len(gone)
                if gone:
                    assert min(gap.since for gap in gaps) <= min(p.well for p in gone)
                said = {t.gap.reason if t.gap else "" for t in between if t.channel == channel}
                due = {r for p, c, r in self.tellings if c == channel and low < p <= high}
                assert due <= said <= due | {"overflow"}


@settings(max_examples=600, deadline=None)
@given(operations, st.integers(1, 40))
def test_a_mailbox_forgets_nothing_but_what_it_tells(ops: list[tuple[str, str, int]], limit: int) -> None:
    """Guarantees 9 and 10: order, latest in its place, exact sums, gaps where they stood, `oldest` never too late."""
    driver = Driver(limit)
    for op, channel, number in ops:
        getattr(driver, op)(channel, number)
        driver.check()
    driver.through("", 0)
    while len(driver.box) or driver.box._lost or driver.box._first:
        driver.grab("", 8)
        driver.through("", 0)
        driver.check()
    driver.judge()


def test_a_stuck_mailbox_keeps_the_exact_moment_and_no_history() -> None:
    """Guarantee 10: `since` is the last moment at which all was well, however old the call that is stuck."""
    box = Mailbox("id", 4)
    assert box.claim.acquire(False)
    box.put([note("a", 0)], at(0))
    assert box.grab() == [note("a", 0)]
    for i in range(1, 100):
        if box.room < 1:
            assert box.drop(1, at(i)) == 1
        box.put([note("a", i)], at(i))
    assert len(box._marks) < 10
    assert box.oldest(FAR) == at(0)
    box.done()
    gap = box.grab()[0]
    assert isinstance(gap, Telling)
    assert gap.gap == Gap("a", "overflow", at(1), at(99), 95)


def test_room_counts_what_was_taken_and_not_begun() -> None:
    """Guarantee 9: at most `max_pending`, whatever a worker has in its hand."""
    box = Mailbox("id", 80)
    box.put([note("a", i) for i in range(80)], at(0))
    assert box.room == 0
    hand = box.grab()
    assert 1 < len(hand) <= 10
    assert (box.room, len(box)) == (1, 79)  # the one that is being handled waits no longer
    box.give_back(hand[3:])
    assert (box.room, len(box)) == (1, 79)
    box.done()
    assert (box.room, len(box)) == (3, 77)


def test_patience_ends_after_a_second_unless_the_subscriber_is_fast() -> None:
    """Guarantee 9: without limit above 10,000 a second, otherwise one second in all, renewed when it was empty."""
    box = Mailbox("id", 1000)
    for _ in range(400):
        box.waited(0.05, 1000)
    assert box.patience == PATIENCE
    box, waited = Mailbox("id", 1000), 0.0
    while box.patience > 0:
        box.waited(0.05, 400)
        waited += 0.05
    assert 0.9 <= waited <= 1.1
    box.put([note("a", 1)], at(0))
    box.grab()
    assert box.patience == PATIENCE


def test_clear_keeps_syschan_and_returns_what_is_untold() -> None:
    """Guarantees 6 and 11: what waits is thrown away, `stopped` and its like are not."""
    box = Mailbox("id", 100)
    gap = Gap("a", "connection", at(0), at(1))
    box.put([note("a", 1)], at(0))
    box.tell(Telling("a", None), at(0))
    box.put([note("b", 1)], at(0))
    box.tell(Telling("b", gap), at(0))
    box.put([Event({"event": "x"})], at(0))
    box.put_latest(note("a", 2), at(0))
    box.drop(2, at(2))
    told = {(t.channel, t.gap.reason if t.gap else None, t.gap.dropped if t.gap else None) for t in box.clear()}
    assert told == {("a", None, None), ("a", "overflow", 1), ("b", "connection", None)}
    assert [item.channel for item in box.grab()] == [SYSCHAN]
    assert not box.put_latest(note("a", 3), at(3))


def test_latest_does_not_cross_into_a_new_subscription() -> None:
    """Guarantee 9: what comes for a new subscription takes no place of the one before it."""
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc)
    box = Mailbox("id", 100)
    box.put_latest(note("a", 1), moment)
    assert box.begin("a")
    box.put_latest(note("a", 2), moment)
    kinds = [type(item).__name__ for _ in range(4) for item in box.grab()]
    assert kinds == ["Notify", "Begin", "Notify"]
