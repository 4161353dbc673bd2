"""Guarantee 11: changes of a lifetime that is over, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from pyrsistent import pmap

from pgnotifier import registry
from pgnotifier.changes import _Change
from pgnotifier.connection import STOPPING, Abandoned, Lifetime
from pgnotifier.delivery import Dispatcher
from pgnotifier.registry import EMPTY, Subscription
from pgnotifier.shared import Request, Shared, nothing


class Session:
    """What a change asks of a session before it asks the server."""

    active = pmap({"a": True})

    def leave(self, names: Any) -> None:
        raise AssertionError("the session is left alone")


def test_a_change_that_is_undone_after_the_stop_touches_nothing() -> None:
    """A listener that stop() could not wait for comes to the next lifetime's registry and coverage."""
    reg, _ = registry.subscribe(EMPTY, 1, "a", Subscription(print), 1)
    dispatcher = Dispatcher(10, lambda attempt: 0.0, lambda: None)
    shared = Shared(dispatcher, dispatcher.post, lambda: None, reg)
    life = Lifetime("", None, (0.1, 1.0))
    session: Any = Session()
    try:
        shared.life, life.session = life, session
        life.to(STOPPING)
        with pytest.raises(Abandoned):
            _Change(shared, life, session, Request(nothing))._undo()
        assert dispatcher.active == pmap()
        assert shared.registry is reg
    finally:
        life.session = None
        life.close()
