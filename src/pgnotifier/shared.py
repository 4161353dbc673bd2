"""What callers and listener threads share: the registry that is wanted, the lifetime that is, and how they meet.

Everything is changed under the state lock, the dispatcher's; readers take none.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import registry
from .clock import now
from .flag import Flag
from .log import ERROR, log
from .registry import EMPTY, NO_CHANNELS, SYSCHAN, Registry, Touched

if TYPE_CHECKING:
    from .connection import Lifetime, Listener
    from .delivery import Dispatcher

Step = Callable[[Registry], registry.Step]


class Request:
    """A change that waits for the server; `everything` compares all channels, not only those that it touches."""

    def __init__(self, step: Step, everything: bool) -> None:
        self.step, self.everything = step, everything
        self.awaited = True
        self.done = Flag()
        self.error: BaseException | None = None


def nothing(reg: Registry) -> registry.Step:
    """The step that changes nothing."""
    return reg, ()


class Shared:
    """`life` is what there is between `start` and the end of `stop`, else None."""

    def __init__(self, dispatcher: Dispatcher, reg: Registry = EMPTY) -> None:
        self.dispatcher, self.lock = dispatcher, dispatcher.lock
        self.registry: Registry = reg
        self.life: Lifetime | None = None
        self.stopped: Flag = Flag(True)
        self.stopped_since: datetime = now()
        self.restarts: int = 0
        self.reconnects: int = 0
        self.last_error: str | None = None

    def difference(
        self, life: Lifetime, reg: Registry, touched: Iterable[Touched], everything: bool
    ) -> tuple[list[str], list[str]]:
        """The channels to listen to and to listen to no longer, under the lock. SYSCHAN is always listened to."""
        session = life.session
        active = session.active if session is not None else NO_CHANNELS
        names = {*life.pending, *(name for name, _ in touched)}
        if everything:
            names.update(registry.valid_channels(reg), active)
        names.discard(SYSCHAN)
        add = [name for name in names if name not in active and registry.is_valid(reg, name)]
        return add, [name for name in names if name in active and not registry.is_valid(reg, name)]

    def commit(
        self,
        life: Lifetime | None,
        new: Registry,
        touched: Iterable[Touched],
        changed: Iterable[str] = (),
        refused: Container[str] = (),
    ) -> None:
        """Make `new` the registry, under the lock; `changed` channels are listened to since, or no longer."""
        self.registry = new
        session = life.session if life is not None else None
        touched = (*touched, *((name, None) for name in changed))
        if life is None or session is None:
            self.dispatcher.commit(new, touched, now(), NO_CHANNELS)
            return
        for name, _ in touched:
            if registry.is_valid(new, name) is (name in session.active) or name in refused or name == SYSCHAN:
                life.pending.discard(name)
            else:
                life.pending.add(name)
        self.dispatcher.commit(new, touched, session.confirmed, session.active)

    def record(self, listener: Listener) -> list[Request]:
        """Make the changes that wait for a session that is gone, under the lock: the next one begins with them."""
        life, waiting = listener.life, list(listener.requests)
        listener.requests.clear()
        if life.next is listener:
            life.next = None
        for request in waiting:
            try:
                new, touched = request.step(self.registry)
                self.commit(life, new, touched)
            except Exception as error:
                request.error = error
        return waiting

    def report(self, waiting: list[Request]) -> None:
        self.dispatcher.turns.wake()
        for request in waiting:
            request.done.set()
            if request.error is not None and not request.awaited:
                log(ERROR, "a change that interrupted another failed", error=request.error)

    @staticmethod
    def withdraw(listener: Listener) -> bool:
        """A thread that has not begun never will, under the lock; returns whether none is left to close all."""
        life, before = listener.life, listener.predecessor
        listener.cancelled, life.listener = True, before
        if life.next is listener:
            life.next = None
        return before is None or before.over

    def end(self, life: Lifetime, event: dict[str, Any] | None) -> None:
        """The lifetime is over: nothing is posted after `event`. Without the lock; a second call does nothing."""
        with self.lock:
            if self.life is not life:
                return  # another thread was first
            self.dispatcher.halt(event, life.confirmed)
            self.stopped_since, self.life = now(), None
        self.dispatcher.turns.wake()
