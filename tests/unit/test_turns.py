"""Guarantees 4, 8 and 10: the queue of mailboxes, without a thread; every step of the table is reached."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import Notify

from pgnotifier.delivery import turns as turns_module
from pgnotifier.delivery.calls import Calls
from pgnotifier.delivery.coverage import Coverage, ListenCall
from pgnotifier.delivery.dispatcher import Dispatcher
from pgnotifier.delivery.eventloops import Batch
from pgnotifier.delivery.mailbox import Entry, Mailbox, Run
from pgnotifier.delivery.states import AWAITING, IDLE, NEXT, PAUSED, PULLED, READY, RUNNING, State
from pgnotifier.delivery.turns import Turns, Worker
from pgnotifier.registry import Subscription

SINCE = datetime(2030, 1, 1, tzinfo=timezone.utc)
Edge = tuple[State, State]


def call(*_: Any) -> None:
    pass


def after(
    turns: Turns,
    box: Mailbox | None = None,
    delivered: int = 0,
    rest: Entry | None = None,
    worker: Worker | None = None,
) -> tuple[Mailbox, Entry] | None:
    """What a worker is given whose last turn was so."""
    worker = worker or Worker()
    worker.boxes, worker.delivered = [] if box is None else [box], delivered
    if box is not None:
        box.rest = rest
    with turns.lock:
        turns.exchange(worker)
    turns.idle.clear()  # it comes again without being woken
    if not worker.boxes:
        return None
    (box,) = worker.boxes
    assert box.hand is not None
    return box, box.hand


class Watched(Mailbox):
    """A mailbox that records the changes of its state."""

    __slots__ = ("_state", "edges")
    edges: list[Edge]
    _state: State

    @property  # type: ignore[override]
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        if hasattr(self, "edges"):
            self.edges.append((self._state, state))
        else:
            self.edges = []
        self._state = state


class House:
    """A dispatcher that no thread works for, and one mailbox on channel "c"; `take` and `end` are a worker's."""

    def __init__(self, delay: float = 0.0) -> None:
        self.dispatcher = Dispatcher(100, lambda attempt: delay, lambda: None)
        self.turns: Turns = self.dispatcher.turns
        self.calls = Calls(self.dispatcher, str, lambda: None)
        self.box = self.mailbox("id")
        self.number = 0
        self.turn: tuple[Mailbox, Entry] | None = None

    def mailbox(self, id: str) -> Watched:
        box = self.dispatcher.boxes[id] = Watched(id, 100)
        box.subs["c"] = Subscription(call, on_listen=call)
        return box

    def put(self, count: int = 1, box: Mailbox | None = None) -> None:
        box = self.box if box is None else box
        notifications = [Notify("c", str(self.number + i), 1) for i in range(count)]
        self.number += count
        box.put(Run("c", notifications, SINCE, 0, count))
        self.turns.add(box)

    def tell(self) -> None:
        self.box.tell(ListenCall("c", None))
        self.turns.add(self.box)

    def next(self, rest: Entry | None = None) -> tuple[Mailbox, Entry] | None:
        """What a worker does between two turns; it does not wait, because the queue is not running."""
        box, delivered = (None, 0) if self.turn is None else (self.turn[0], int(isinstance(self.turn[1], Run)))
        self.turn = after(self.turns, box, delivered, rest)
        return self.turn

    def fail(self) -> None:
        """The call of `on_listen` that is in hand has raised."""
        assert self.turn is not None
        assert isinstance(self.turn[1], ListenCall)
        self.next(rest=self.turn[1])

    def ship(self, loop: Loop) -> Batch:
        """Hand the turn over to an event loop."""
        assert self.turn is not None
        (box, hand), self.turn = self.turn, None
        sub = box.subs["c"] = Subscription(call, loop=loop, awaits=True, tells_by_awaiting=True)
        box.sub = sub if box.sub is not None else None
        batch = Batch(self.dispatcher, self.calls, box, hand, sub)
        batch.ship()
        return batch


class Loop:
    """An event loop that does nothing until `closed`, and refuses then."""

    closed = False

    def call_soon_threadsafe(self, *_: object, context: object) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")

    def is_closed(self) -> bool:
        return self.closed


@pytest.fixture
def house() -> House:
    return House()


# -- a scenario for every edge of the table -------------------------------------------------------------------


def put(house: House) -> None:
    house.put()


def worker_takes(house: House) -> None:
    house.put()
    house.next()


def all_thrown_away_before_a_worker_comes(house: House) -> None:
    house.put()
    house.box.purge("c")
    assert house.next() is None


def worker_is_through(house: House) -> None:
    worker_takes(house)
    assert house.next() is None


def worker_leaves_the_rest(house: House) -> None:
    house.put(100)
    house.next()
    other = house.mailbox("other")
    house.put(1, other)
    assert house.next() is not None
    assert house.turn is not None
    assert house.turn[0] is other, "each in its turn"


def event_loop_calls(house: House) -> Batch:
    worker_takes(house)
    return house.ship(Loop())


def event_loop_was_closed(house: House) -> None:
    worker_takes(house)
    loop = Loop()
    loop.closed = True
    house.ship(loop)
    assert house.dispatcher.failed == 1
    assert house.box.state is IDLE


def event_loop_is_through(house: House) -> None:
    batch = event_loop_calls(house)
    batch.items.clear()
    batch._step()


def event_loop_leaves_the_rest(house: House) -> None:
    batch = event_loop_calls(house)
    house.put()
    batch.loop.closed = True
    batch.notice()


def event_loop_fails_on_listen(house: House) -> None:
    house.tell()
    house.next()
    batch = house.ship(Loop())
    assert isinstance(house.box.hand, ListenCall)
    batch.items.clear()
    batch._step()


def on_listen_fails(house: House) -> None:
    house.tell()
    house.next()
    house.turns._delay = lambda attempt: 60.0
    house.fail()


def on_listen_is_due_again(house: House) -> None:
    house.tell()
    house.next()
    house.fail()  # it is called again at once
    assert house.turn is not None
    assert isinstance(house.turn[1], ListenCall)


class Readers:
    def notice(self) -> None:
        """Nobody reads."""


def stream_has_it(house: House) -> None:
    house.box.pulled_by(Readers())
    house.put()
    assert house.turns.boxes == {"id": house.box}
    assert not house.turns._queue


SCENARIOS: dict[Edge, Callable[[House], object]] = {
    (IDLE, READY): put,
    (READY, RUNNING): worker_takes,
    (READY, IDLE): all_thrown_away_before_a_worker_comes,
    (RUNNING, IDLE): worker_is_through,
    (RUNNING, READY): worker_leaves_the_rest,
    (RUNNING, AWAITING): event_loop_calls,
    (RUNNING, PAUSED): on_listen_fails,
    (AWAITING, IDLE): event_loop_is_through,
    (AWAITING, READY): event_loop_leaves_the_rest,
    (AWAITING, PAUSED): event_loop_fails_on_listen,
    (PAUSED, READY): on_listen_is_due_again,
    (IDLE, PULLED): stream_has_it,
}


def test_an_event_loop_that_is_closed_already_is_a_failure_of_each_call(house: House) -> None:
    """Guarantee 8."""
    event_loop_was_closed(house)
    assert (RUNNING, AWAITING) in house.box.edges


def test_there_is_a_scenario_for_every_edge() -> None:
    assert set(SCENARIOS) == {(old, new) for old in State for new in NEXT[old]}


@pytest.mark.parametrize("edge", SCENARIOS, ids=lambda edge: f"{edge[0].name}-{edge[1].name}")
def test_the_edge_is_reached(house: House, edge: Edge) -> None:
    SCENARIOS[edge](house)
    assert edge in house.box.edges
    assert all(new in NEXT[old] for old, new in house.box.edges)


# -- any sequence ------------------------------------------------------------------------------------------------

operations = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "put",
                "put",
                "tell",
                "next",
                "next",
                "next",
                "fail",
                "ship",
                "closed",
                "release",
                "awaited",
                "void",
                "begin",
            ]
        ),
        st.integers(0, 1),
        st.integers(1, 12),
    ),
    max_size=50,
)


class Player:
    """Two mailboxes, one worker, an event loop; everything that is put is handled once, in order, or purged."""

    def __init__(self) -> None:
        self.house = House()
        self.boxes = [self.house.box, self.house.mailbox("other")]
        self.shipped: list[Batch] = []
        self.due: dict[str, list[int]] = {"id": [], "other": []}

    def play(self, op: str, which: int, count: int) -> None:
        house, box = self.house, self.boxes[which]
        turn = house.turn
        if op == "put":
            house.put(count, box)
            self.due[str(box.id)] += range(house.number - count, house.number)
        elif op == "tell":
            box.tell(ListenCall("c", None))
            house.turns.add(box)
        elif op == "next":
            self.through()
            house.next()
        elif op == "fail" and turn is not None and isinstance(turn[1], ListenCall):
            house.fail()
        elif op in ("ship", "closed") and turn is not None and turn[0].sub is not None:
            loop = Loop()
            loop.closed = op == "closed"
            if loop.closed:
                self.handled(turn[0])
            batch = house.ship(loop)
            if not loop.closed:
                self.shipped.append(batch)
        elif op in ("release", "awaited") and self.shipped:
            batch = self.shipped.pop(0)
            if op == "release":
                batch.told = True
            if op == "release" or isinstance(batch.hand, Run):
                self.handled(batch.box)
            batch.items.clear()
            batch._step()
        elif op == "void":
            self.due[str(box.id)] = []
            sub = box.subs["c"]
            house.dispatcher._void(box, "c", "muted", SINCE)
            box.subs["c"] = sub
            house.dispatcher.boxes[box.id] = box  # it is subscribed again at once
        elif op == "begin":
            counts = [len(one.edges) for one in self.boxes]
            house.turns.begin()
            house.turns.running = False
            for one, count in zip(self.boxes, counts, strict=True):
                del one.edges[count:]  # it sets the states anew, whatever they were

    def handled(self, box: Mailbox) -> None:
        hand, due = box.hand, self.due[str(box.id)]
        if isinstance(hand, Run) and box.sub is not None:
            numbers = [int(n.payload) for n in hand.notifications[hand.start : hand.stop]]
            assert numbers == due[: len(numbers)]
            del due[: len(numbers)]

    def through(self) -> None:
        if self.house.turn is not None:
            self.handled(self.house.turn[0])

    def check(self) -> None:
        turns, turn = self.house.turns, self.house.turn
        for box in self.boxes:
            assert all(new in NEXT[old] for old, new in box.edges), box.edges
            assert turns._queue.count(box) == (box.state is READY)
            assert turns._paused.count(box) == (box.state is PAUSED)
            assert (box.state is RUNNING) == (turn is not None and turn[0] is box)
            assert (box.state is AWAITING) == (box in [batch.box for batch in self.shipped])
            assert not (box.entries and box.state is IDLE), "it waits, and nobody will come"
            assert (box.hand is None and not box.held) or box.state in (RUNNING, AWAITING)
        busy = [box for box in self.boxes if box.state is not IDLE]
        assert self.house.dispatcher.is_idle() == (not busy)

    def judge(self) -> None:
        while self.shipped:
            self.play("release", 0, 0)
        self.through()
        while self.house.next() is not None:
            self.through()
        self.check()
        assert self.due == {"id": [], "other": []}, "forgotten"
        assert all(box.state is IDLE for box in self.boxes)


@settings(max_examples=300, deadline=None)
@given(operations)
def test_any_sequence_keeps_to_the_table_and_forgets_nothing(script: list[tuple[str, int, int]]) -> None:
    """A mailbox stands in the queue once, is handled by one at a time, and in order."""
    player = Player()
    for op, which, count in script:
        player.play(op, which, count)
        player.check()
    player.judge()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["put", "put", "tell", "next", "void"]), st.integers(0, 3), st.integers(1, 2)))
)
def test_any_sequence_of_turns_of_several_mailboxes_at_once(script: list[tuple[str, int, int]]) -> None:
    """Guarantee 4: a worker that takes several makes each call once, in order, and none that became void."""
    house, worker = House(), Worker(3)
    boxes = [house.mailbox(str(number)) for number in range(4)]
    due: dict[Any, list[int]] = {box.id: [] for box in boxes}

    def handle() -> None:
        for box in worker.boxes:
            if isinstance(box.hand, Run) and box.sub is not None:
                numbers = [int(n.payload) for n in box.hand.notifications[box.hand.start : box.hand.stop]]
                assert numbers == due[box.id][: len(numbers)]
                del due[box.id][: len(numbers)]
        house.turns.exchange(worker)
        house.turns.idle.clear()

    for op, which, count in script:
        box = boxes[which]
        if op == "put":
            house.put(count, box)
            due[box.id] += range(house.number - count, house.number)
        elif op == "tell":
            box.tell(ListenCall("c", None))
            house.turns.add(box)
        elif op == "next":
            handle()
        else:
            sub, due[box.id] = box.subs["c"], []
            house.dispatcher._void(box, "c", "muted", SINCE)
            box.subs["c"] = sub
            house.dispatcher.boxes[box.id] = box
        assert {box.id for box in boxes if box.state is RUNNING} == {box.id for box in worker.boxes}
        assert all(house.turns._queue.count(box) == (box.state is READY) for box in boxes)
        assert all(box.waiting == sum(entry.size for entry in box.entries) for box in boxes)
    while worker.boxes or house.turns._queue:
        handle()
    assert not any(due.values()), "forgotten"
    assert all(box.state is IDLE and not box.held for box in boxes)


# -- the rest ----------------------------------------------------------------------------------------------------


def bare(delay: Callable[[int], float] = lambda attempt: 0.0) -> Turns:
    return Turns(threading.RLock(), Coverage(), delay)


def mailbox(id: str, count: int = 0) -> Mailbox:
    box = Mailbox(id, 100)
    box.subs["c"] = Subscription(call, on_listen=call)
    if count:
        box.put(Run("c", [Notify("c", str(i), 1) for i in range(count)], SINCE, 0, count))
    return box


def test_the_mailbox_that_was_left_stands_behind_the_others() -> None:
    """Guarantee 9: none starves."""
    turns = bare()
    one, two = mailbox("one", 100), mailbox("two", 1)
    turns.add(one)
    turns.add(two)
    turn = after(turns)
    assert turn is not None
    assert turn[0] is one
    turn = after(turns, one, 8)
    assert turn is not None
    assert turn[0] is two
    assert (one.state, one.hand, one.held) == (READY, None, 0)
    turn = after(turns, two, 1)
    assert turn is not None
    assert turn[0] is one
    assert turns.delivered == 9


@pytest.mark.parametrize("most", [1, 3])
def test_several_mailboxes_with_one_call_each_are_taken_at_once(most: int) -> None:
    """Guarantee 9: what has not begun still counts as waiting; a longer turn has the worker for itself."""
    turns = bare()
    boxes = [mailbox(str(i), count) for i, count in enumerate([1, 1, 1, 1, 5, 1])]
    for box in boxes:
        turns.add(box)
    worker, taken = Worker(most), []
    while turns._queue:
        turns.exchange(worker)
        taken.append([int(str(box.id)) for box in worker.boxes])
        assert all(box.state is RUNNING for box in worker.boxes)
        assert [len(box) for box in worker.boxes[1:]] == [1] * (len(worker.boxes) - 1)
        assert worker.boxes[0].held == worker.boxes[0].hand.size - 1  # type: ignore[union-attr]
    assert taken == ([[0], [1], [2], [3], [4], [5]] if most == 1 else [[0, 1, 2], [3], [4], [5]])


def test_a_turn_is_followed_up_where_somebody_waits_for_it(house: House) -> None:
    """The listener for room, SYSCHAN's subscribers for what was dropped, a caller for the bell; else nobody."""
    dispatcher, posting, rooms = house.dispatcher, house.dispatcher.posting, list[int]()
    dispatcher._on_room = lambda: rooms.append(1)
    dispatcher.follow_up([house.box])
    assert rooms == []
    house.box.blocking = True
    posting.blocking.append(house.box)
    dispatcher.follow_up([house.box])
    assert rooms == [1]
    house.put(90)
    dispatcher.follow_up([house.box])
    assert rooms == [1], "it has no room yet"
    house.box.unannounced = {"c": 1}
    posting.late[house.box] = None
    dispatcher.follow_up([house.box])
    assert not posting.late
    rang = list[int]()
    dispatcher.turns.bell.wait_for(lambda: dispatcher.follow_up([house.box]) or rang.append(1) or len(rang) > 2)


def test_a_mailbox_that_is_subscribed_to_nothing_is_forgotten(house: House) -> None:
    worker_takes(house)
    house.box.subs.clear()
    house.next()
    assert "id" not in house.dispatcher.boxes


def test_a_failed_on_listen_waits_longer_each_time_and_begins_anew_when_it_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guarantee 10: the backoff of its attempts; what waits behind it keeps its order."""
    moment = 50.0
    monkeypatch.setattr(turns_module, "monotonic", lambda: moment)
    turns = bare(lambda attempt: 2.0**attempt)
    box = mailbox("one")
    box.tell(ListenCall("c", None))
    box.put(Run("c", [Notify("c", "1", 1)], SINCE, 0, 1))
    turns.add(box)
    for attempt in (1, 2, 3):
        turn = after(turns)
        assert turn is not None
        assert isinstance(turn[1], ListenCall)
        assert after(turns, box, rest=turn[1]) is None
        assert (box.state, box.attempt, box.resume_at) == (PAUSED, attempt, moment + 2.0**attempt)
        turns.add(box)
        assert box.state is PAUSED, "more that comes does not bring it forward"
        moment += 2.0**attempt - 0.01
        assert after(turns) is None
        moment += 0.01
    assert after(turns) is not None
    turn = after(turns, box)
    assert turn is not None
    assert isinstance(turn[1], Run)
    assert after(turns, box, 1) is None
    assert (box.state, box.attempt) == (IDLE, 0)


@pytest.mark.parametrize("again", [False, True])
def test_a_failed_call_whose_subscription_is_muted_is_taken_back(again: bool) -> None:
    """Guarantee 10: and made first, before the call that is due since, if the subscription is covered again."""
    turns = bare()
    box = mailbox("one")
    cover = lambda covered: turns._coverage.update("c", "one", True, covered, SINCE, SINCE)  # noqa: E731
    first = cover(True)
    box.tell(first)
    turns.add(box)
    turn = after(turns)
    assert turn is not None
    assert turn[1] is first
    box.purge("c")
    assert cover(False) is None
    if again:
        box.tell(cover(True))
        turn = after(turns, box, rest=first)
        assert turn is not None
        assert turn[1] is first
        assert len(box.entries) == 1
    else:
        assert after(turns, box, rest=first) is None
        assert box.state is IDLE
        due = cover(True)
        assert due is not None
        assert due.gap is None, "the first call is still to come"


def test_waking_wakes_as_many_workers_as_mailboxes_are_ready_and_all_at_the_end() -> None:
    turns = bare()
    turns.running = True
    waiters = [threading.Lock() for _ in range(3)]
    for waiter in waiters:
        waiter.acquire()
    turns.idle += waiters
    turns.wake()
    assert all(w.locked() for w in waiters)
    turns.add(mailbox("one", 1))
    turns.wake()
    assert sum(w.locked() for w in waiters) == 2
    turns.running = False
    turns.wake()
    assert not any(w.locked() for w in waiters)
    turns.wake()


def test_a_worker_waits_no_longer_than_until_an_on_listen_is_due() -> None:
    dispatcher = Dispatcher(100, lambda attempt: 0.05, lambda: None)
    turns = dispatcher.turns
    turns.running = True
    box = turns.boxes["one"] = mailbox("one")
    box.tell(ListenCall("c", None))
    turns.add(box)
    worker = Worker()
    assert dispatcher.next(worker)
    assert worker.boxes == [box]
    assert isinstance(box.hand, ListenCall)
    box.rest = call = box.hand
    began = monotonic()
    assert dispatcher.next(worker)
    assert monotonic() - began < 0.9, "longer than the 0.05 seconds"
    assert box.hand is call
    assert turns.idle == []
    turns.running = False
    assert not dispatcher.next(worker)


def test_an_owner_is_told_when_something_comes_for_it() -> None:
    """Guarantee 8: on the next waking, not under the lock, so that a closed event loop is noticed."""
    turns = bare()
    noticed: list[int] = []
    box = mailbox("one", 1)
    turns.add(box)
    after(turns)
    box.to(AWAITING)
    box.owner = type("Owner", (), {"notice": lambda _: noticed.append(1)})()
    with turns.lock:
        turns.add(box)
        turns.wake()
        assert not noticed
    turns.wake()
    turns.wake()
    assert noticed == [1]


def test_many_mailboxes_of_an_event_loop_that_was_closed_are_taken_back(house: House) -> None:
    """Guarantee 8: with the next notification that comes for all of them."""
    loop, count = Loop(), 3000
    for number in range(count):
        house.box = house.mailbox(str(number))
        worker_takes(house)
        house.ship(loop)
    loop.closed = True
    boxes = [box for box in house.dispatcher.boxes.values() if box.state is AWAITING]
    assert len(boxes) == count
    for box in boxes:
        house.turns.add(box)
    house.turns.wake()
    assert all(box.state is READY for box in boxes)


def test_beginning_again_makes_good_what_an_interrupted_stop_left() -> None:
    turns = bare()
    boxes = [mailbox(str(i), 2) for i in range(6)]
    for box, state in zip(boxes, State, strict=True):
        box.state = state
        box.waiting = 77
    boxes.append(mailbox("empty"))
    boxes[-1].state = READY
    turns._queue.append(boxes[0])
    turns._paused.append(boxes[0])
    turns.boxes.update((box.id, box) for box in boxes)
    turns.begin()
    assert turns.running
    assert [box.state for box in boxes] == [READY, READY, RUNNING, AWAITING, READY, PULLED, IDLE]
    assert all(box.waiting == 2 for box in boxes[:-1])
    assert list(turns._queue) == [boxes[0], boxes[1], boxes[4]]
    assert not turns._paused
    turns.clear()
    assert (turns.running, list(turns._queue)) == (False, [])


def test_a_mailbox_that_stands_in_the_queue_twice_is_taken_once() -> None:
    """A thread that was interrupted between two lines of `add` may leave it there twice."""
    turns = bare()
    box = mailbox("one", 1)
    turns._queue.append(box)
    turns.add(box)
    turn = after(turns)
    assert turn is not None
    assert after(turns) is None
    assert box.state is RUNNING
    assert after(turns, box, 1) is None
    assert box.state is IDLE
