"""Guarantee 9: how a batch finds room in mailboxes, what is dropped for it, and how long the listener waits."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from datetime import datetime, timezone
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import Notify

from pgnotifier import registry
from pgnotifier.delivery import posting as module
from pgnotifier.delivery.coverage import Coverage
from pgnotifier.delivery.mailbox import MAX_TURN, Mailbox, Owner, Run
from pgnotifier.delivery.patience import PATIENCE_SECONDS, RATE_SECONDS
from pgnotifier.delivery.posting import LOOK_AGAIN, Posting
from pgnotifier.delivery.states import State
from pgnotifier.delivery.turns import Turns
from pgnotifier.registry import EMPTY, SYSCHAN, Subscription

SINCE = datetime(2030, 1, 1, tzinfo=timezone.utc)


def call(*_: Any) -> None:
    pass


class Clock:
    """Monotonic seconds as the tests want them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moment = 100.0
        monkeypatch.setattr(module, "monotonic", lambda: self.moment)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class House:
    """A posting, its mailboxes and what became ready. `subscribe` says who is subscribed to channel "c"."""

    def __init__(self) -> None:
        self.turns = Turns(threading.RLock(), Coverage(), lambda attempt: 0.0)
        self.boxes: dict[Hashable, Mailbox] = self.turns.boxes
        self.posting = Posting(self.turns)

    @property
    def ready(self) -> list[Hashable]:
        return [box.id for box in self.turns._queue]

    def subscribe(self, id: Hashable, limit: int, latest: bool = False, channel: str = "c") -> Mailbox:
        sub = Subscription(call, on_listen=call, latest=latest)
        self.posting.registry, touched = registry.subscribe(self.posting.registry, id, channel, sub, 1)
        for name, _ in touched:
            self.posting.forget_route(name)
        box = self.boxes.setdefault(id, Mailbox(id, limit))
        box.subs[channel] = sub
        return box

    def post(self, size: int, channel: str = "c") -> int:
        self.posting.resume()
        route, fit = self.posting.plan(channel, size)
        if fit:
            run = self.posting.run(route, channel, [Notify(channel, str(i), 1) for i in range(fit)], SINCE)
            self.posting.put(*route, run)
        return fit

    def spend(self) -> None:
        """The listener has waited for slow subscribers as long as it may."""
        self.posting._patience.spend(PATIENCE_SECONDS, module.monotonic())


def slow(box: Mailbox) -> Mailbox:
    """It has been measured, and found slow."""
    box.rate.begin(module.monotonic() - RATE_SECONDS, box.taken)
    box.rate.end(module.monotonic(), box.taken)
    return box


def test_a_run_goes_to_all_and_only_the_last_to_latest(clock: Clock) -> None:
    """One object for all, with shared payloads where it has several subscribers."""
    house = House()
    one, two, last = house.subscribe(1, 10), house.subscribe(2, 10), house.subscribe(3, 10, latest=True)
    assert house.post(4) == 4
    assert one.entries[0] is two.entries[0]
    assert isinstance(one.entries[0], Run)
    assert one.entries[0].payloads is not None
    assert (len(one), len(two), len(last)) == (4, 4, 1)
    assert isinstance(last.entries[0], Run)
    assert (last.entries[0].start, last.entries[0].stop) == (3, 4)
    assert last.entries[0].payloads is one.entries[0].payloads, "decoded once for all of them"
    assert sorted(house.ready, key=str) == [1, 2, 3]


def test_a_run_for_one_subscriber_shares_nothing(clock: Clock) -> None:
    house = House()
    box = house.subscribe(1, 10)
    house.post(2)
    assert isinstance(box.entries[0], Run)
    assert box.entries[0].payloads is None


def test_a_route_knows_neither_the_muted_nor_those_without_a_mailbox(clock: Clock) -> None:
    house = House()
    house.subscribe(1, 10), house.subscribe(2, 10), house.subscribe(3, 10)
    reg, _ = registry.mute_subscriber(house.posting.registry, 1, (), True)
    house.posting.registry = reg
    del house.boxes[1].subs["c"]  # as the dispatcher does with what is muted
    del house.boxes[2]
    assert [b.id for b in house.posting.plan("c", 1)[0][0]] == [3]
    del house.boxes[3].subs["c"]
    assert [b.id for b in house.posting.plan("c", 1)[0][0]] == [3], "the route is kept until it is forgotten"
    house.posting.forget_route("c")
    assert house.posting.plan("c", 1) == (((), ()), 1)
    assert house.posting.plan("unknown", 7) == (((), ()), 7)


def test_a_full_mailbox_takes_what_fits_and_the_listener_waits(clock: Clock) -> None:
    """Nothing is dropped before it is known that the subscriber is slow, and the budget is spent."""
    house = House()
    box, other = house.subscribe(1, 10), house.subscribe(2, 100)
    assert house.post(3) == 3
    assert house.post(20) == 7, "half of it was free: the listener posts that much, and waits for nobody yet"
    assert not box.blocking
    assert house.post(8) == 0
    assert box.blocking
    assert not other.blocking
    house.turns.running = True
    taken, seconds = house.posting.post([Notify("c", "0", 1)] * 8, SINCE)
    assert taken == 0
    assert 0 < seconds <= LOOK_AGAIN
    assert house.post(6) == 0
    assert (len(box), len(other), house.posting.dropped) == (10, 10, 0)
    clock.moment += 0.5  # it takes nothing
    assert house.post(6) == 0
    assert house.posting._patience.left(clock.moment) == pytest.approx(0.5, abs=0.01)
    clock.moment += 0.3
    assert house.post(6) == 0
    clock.moment += 0.3
    assert house.post(6) == 6
    assert not box.blocking
    assert (len(box), len(other), house.posting.dropped) == (10, 16, 6)
    assert [*house.posting.late] == [box]
    assert box.unannounced == {"c": 6}


def test_a_fast_subscriber_is_waited_for_without_limit(clock: Clock) -> None:
    house = House()
    box = house.subscribe(1, 1000)
    box.turn = MAX_TURN
    house.post(1000)
    for _ in range(400):
        house.post(1000)
        clock.moment += 0.01
        box.turn, before = MAX_TURN, box.taken
        while box.taken < before + 125:  # 12,500 a second
            assert box.take()
            box.hand = None
    assert house.posting.dropped == 0
    assert house.posting._patience.left(clock.moment) == PATIENCE_SECONDS


def test_a_paused_mailbox_spends_no_patience(clock: Clock) -> None:
    """Guarantee 10: nobody waits for an `on_listen` that is called again."""
    house = House()
    box = house.subscribe(1, 10)
    house.post(10)
    box.state = State.PAUSED
    assert house.post(4) == 4
    assert not box.blocking
    assert (len(box), house.posting.dropped) == (10, 4)
    assert house.posting._patience.left(clock.moment) == PATIENCE_SECONDS


def test_latest_needs_no_room_where_its_place_is_open(clock: Clock) -> None:
    """Guarantee 9: and where it is not, it takes no other channel's place without a word."""
    house = House()
    box = house.subscribe(1, 3, latest=True)
    house.subscribe(1, 3, channel="d")
    slow(box), house.spend()
    assert house.post(5) == 5
    assert house.post(2, "d") == 2
    assert house.post(5) == 5
    assert (len(box), house.posting.dropped) == (3, 0)
    assert box.take()
    box.hand = None
    assert house.post(1, "d") == 1
    assert house.post(5) == 5
    assert (len(box), house.posting.dropped, box.unannounced) == (3, 1, {"d": 1})


def test_an_event_makes_room_and_says_so(clock: Clock) -> None:
    """Guarantee 6: it costs no notification that the subscriber is not told of."""
    house = House()
    house.turns.running = True
    house.posting.event({"event": "connected"})  # nobody is there
    box = house.subscribe(1, 2, channel=SYSCHAN)
    house.subscribe(1, 2)
    house.post(2)
    house.posting.event({"event": "connected"})
    assert (len(box), house.posting.dropped, box.unannounced, [*house.posting.late]) == (2, 1, {"c": 1}, [box])
    last = box.entries[-1]
    assert isinstance(last, Run)
    assert last.channel == SYSCHAN
    assert last.notifications[0].pid == 0
    assert last.payloads == [{"event": "connected"}]
    house.posting.make_room(box, 1)
    assert (house.posting.dropped, box.unannounced, [*house.posting.late]) == (2, {"c": 2}, [box])


def test_only_idle_mailboxes_come_into_the_queue_and_owners_hear_of_the_rest(clock: Clock) -> None:
    """A mailbox that a worker has, or that stands in the queue, needs nothing; an event loop may have been closed."""
    house = House()
    for id, state in enumerate(State):
        house.subscribe(id, 10).state = state
    owner = house.boxes[3].owner = cast(Owner, object())
    house.post(1)
    assert house.ready == [0]
    assert house.boxes[0].state is State.READY
    assert [*house.turns._noticed] == [owner]
    assert all(len(box) == 1 for box in house.boxes.values())


def test_what_was_dropped_is_announced_once_a_second_and_when_all_is_handled(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 6: one event for each mailbox, however many times it had no room."""
    house = House()
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(house.posting, "event", events.append)

    def announced() -> list[tuple[Any, str, int]]:
        events.clear()
        house.posting.announce([box])
        assert all(event["event"] == "overflow" for event in events)
        return [(event["id"], event["channel"], event["dropped"]) for event in events]

    box = slow(house.subscribe(1, 2))
    house.spend()
    house.post(2)
    house.post(2)
    assert announced() == [(1, "c", 2)]
    assert announced() == []
    clock.moment += 0.5
    house.post(1)
    house.post(1)
    assert announced() == []
    clock.moment += 0.5
    assert announced() == [(1, "c", 2)]
    house.spend()
    house.post(1)
    box.purge("c")
    box.state = State.RUNNING
    assert announced() == []
    box.state = State.IDLE
    assert announced() == [(1, "c", 1)]
    assert ([*house.posting.late], box.unannounced, house.posting.dropped) == ([], {}, 5)


def test_a_halt_posts_the_last_event_and_forgets_all_routes(clock: Clock) -> None:
    house = House()
    box = house.subscribe(1, 10, channel=SYSCHAN)
    house.subscribe(2, 10)
    house.post(1)
    house.posting.registry = EMPTY
    house.posting.halt({"event": "stopped"})
    assert not box.entries
    assert house.posting.plan("c", 1) == (((), ()), 1)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40), st.booleans(), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 50),
)
def test_no_more_is_dropped_than_needed(
    monkeypatch: pytest.MonkeyPatch, mailboxes: list[tuple[int, int, bool, bool]], size: int
) -> None:
    """Whatever slow mailboxes hold: the listener waits for none, and what is planned has room in all of them."""
    Clock(monkeypatch)
    house = House()
    boxes = []
    for id, (limit, filled, latest, in_hand) in enumerate(mailboxes):
        box = house.subscribe(id, limit, latest=latest)
        box.put(Run("c", [Notify("c", str(i), 1) for i in range(limit)], SINCE, 0, min(filled, limit)))
        box.turn = MAX_TURN
        if in_hand and filled:
            assert box.take()
        boxes.append(slow(box))
    house.spend()
    before = [box.room for box in boxes]
    most = [box.room if box.has_room and box.room else box.limit - box.held for box in boxes]
    (everything, last), fit = house.posting.plan("c", size)
    assert {*everything, *last} == {*boxes}
    assert 0 <= fit <= size
    for box, room in zip(boxes, before, strict=True):
        need = fit if box in everything else min(fit, 1)
        assert box.room >= need
        assert box.unannounced.get("c", 0) == box.room - room == max(0, need - room)
    assert house.posting.dropped == sum(sum(box.unannounced.values()) for box in boxes)
    fits = [
        number for box, room, number in zip(boxes, before, most, strict=True) if box in everything and room < size
    ]
    assert fit == min([size, *fits])
    assert {*house.posting.late} == {box for box in boxes if box.unannounced}
