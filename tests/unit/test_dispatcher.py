"""Guarantees 9 and 10: the dispatcher without a server and without workers."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from psycopg import Notify
from pyrsistent import pmap

from pgnotifier import registry
from pgnotifier.clock import now
from pgnotifier.connection import Lifetime
from pgnotifier.delivery import Dispatcher, ListenCall
from pgnotifier.delivery.posting import MAX_SLICE
from pgnotifier.registry import EMPTY, Subscription
from pgnotifier.shared import Shared


def at(seconds: int) -> datetime:
    return datetime(2020, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)


def call(*_: Any) -> None:
    pass


def test_a_post_to_full_mailboxes_puts_nothing() -> None:
    """Every mailbox has the same notifications, none twice, and none of those that found no room."""
    number, limit = MAX_SLICE + 200, 5
    reg = EMPTY
    for id in range(number):
        reg, _ = registry.subscribe(reg, id, "a", Subscription(call), id)
    dispatcher = Dispatcher(limit, lambda attempt: 0.0, lambda: None)
    dispatcher.begin()
    dispatcher.commit(reg, [("a", None)], now(), pmap({"a": True}))
    batch = [Notify("a", str(k), 1) for k in range(limit + 3)]
    taken, seconds = dispatcher.post(batch, now())
    assert taken == limit
    assert seconds > 0
    assert {len(box) for box in dispatcher.boxes.values()} == {limit}
    assert dispatcher.post(batch[taken:], now())[0] == 0
    assert {len(box) for box in dispatcher.boxes.values()} == {limit}
    assert dispatcher.counts()["dropped"] == 0


def test_what_was_read_before_a_loss_does_not_come_before_the_gap_of_a_mute() -> None:
    """Guarantee 10: the gap stands in its place, also if it is told when the connection is back."""
    reg, touched = registry.subscribe(EMPTY, 1, "a", Subscription(call, on_listen=call), 1)
    muted, _ = registry.mute_subscriber(reg, 1, ["a"], True)
    dispatcher = Dispatcher(10, lambda attempt: 0.0, lambda: None)
    dispatcher.begin()
    dispatcher.commit(reg, touched, at(0), pmap({"a": True}))
    assert dispatcher.boxes[1].take()
    dispatcher.turns.end(dispatcher.boxes[1])  # the first call has returned
    dispatcher.post([Notify("a", "1", 1)], at(10))
    dispatcher.commit(muted, touched, at(20), pmap())  # the connection is lost, and its last batches are posted
    dispatcher.commit(reg, touched, at(21), pmap())
    dispatcher.post([Notify("a", "2", 1)], at(12))
    assert not dispatcher.boxes[1].entries
    dispatcher.lose("connection", at(11), "cut")
    dispatcher.commit(reg, touched, at(50), pmap({"a": True}))
    told, *others = dispatcher.boxes[1].entries
    assert isinstance(told, ListenCall)
    assert told.gap is not None
    assert told.gap.since == at(10)
    assert others == []


def test_a_mute_while_the_last_batches_are_handed_over_begins_before_them() -> None:
    """Guarantee 10: what was read before a loss and is not posted yet may be older than the last confirmation."""
    reg, touched = registry.subscribe(EMPTY, 1, "a", Subscription(call, on_listen=call), 1)
    muted, _ = registry.mute_subscriber(reg, 1, ["a"], True)
    dispatcher = Dispatcher(10, lambda attempt: 0.0, lambda: None)
    dispatcher.begin()
    dispatcher.commit(reg, touched, at(0), pmap({"a": True}))
    assert dispatcher.boxes[1].take()
    dispatcher.turns.end(dispatcher.boxes[1])  # the first call has returned
    shared, life = Shared(dispatcher, dispatcher.post, lambda: None, reg), Lifetime("", None, (0.1, 1.0))
    try:
        shared.life, life.confirmed = life, at(5)
        shared.commit(life, muted, touched)
        shared.commit(life, reg, touched)
    finally:
        life.close()
    dispatcher.lose("connection", at(20))
    dispatcher.commit(reg, touched, at(50), pmap({"a": True}))
    (told,) = dispatcher.boxes[1].entries
    assert isinstance(told, ListenCall)
    assert told.gap is not None
    assert told.gap.since == at(5)


def test_a_gap_begins_before_what_a_mute_throws_away_while_the_connection_is_lost() -> None:
    """Guarantee 10: `since` is never later than the oldest notification that was thrown away."""
    reg, touched = registry.subscribe(EMPTY, 1, "a", Subscription(call, on_listen=call), 1)
    muted, _ = registry.mute_subscriber(reg, 1, ["a"], True)
    dispatcher = Dispatcher(10, lambda attempt: 0.0, lambda: None)
    dispatcher.begin()
    dispatcher.commit(reg, touched, at(0), pmap({"a": True}))
    box = dispatcher.boxes[1]
    assert box.take()
    box.hand = box.sub = None  # the first call has returned
    dispatcher.post([Notify("a", "1", 1)], at(10))
    dispatcher.lose("connection", at(20), "cut")
    dispatcher.commit(muted, touched, at(30), pmap())
    assert not box.entries
    dispatcher.commit(reg, touched, at(40), pmap())
    dispatcher.commit(reg, touched, at(50), pmap({"a": True}))
    assert dispatcher.boxes[1].take()
    told = dispatcher.boxes[1].hand
    assert isinstance(told, ListenCall)
    assert told.gap is not None
    assert (told.gap.reason, told.gap.since, told.gap.error) == ("connection", at(10), "cut")
