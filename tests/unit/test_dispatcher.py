"""Guarantee 9: a post to more mailboxes than are filled at a time, without a server and without workers."""

from __future__ import annotations

from typing import Any

from psycopg import Notify
from pyrsistent import pmap

from pgnotifier import registry
from pgnotifier.clock import now
from pgnotifier.delivery import Dispatcher
from pgnotifier.delivery.posting import MAX_SLICE
from pgnotifier.registry import EMPTY, Subscription


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
