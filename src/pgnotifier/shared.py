"""What callers and listener threads share: the registry that is wanted, the lifetime that is, and how they meet.

Everything is changed under the state lock, the dispatcher's; readers take none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import registry
from .clock import now
from .flag import Flag
from .log import ERROR, describe, log
from .registry import EMPTY, NO_CHANNELS, SYSCHAN, Registry, Touched

if TYPE_CHECKING:
    from .connection import Lifetime, Session
    from .delivery import Dispatcher

Step = Callable[[Registry], registry.Step]
Notify = Callable[[list[Any], datetime], tuple[int, float]]


class Request:
    """A change, which may wait for the server.

    `autorun`: the server has to follow. `everything` compares all channels, not only those that the step touches.
    """

    def __init__(self, step: Step, autorun: bool = True, everything: bool = False) -> None:
        self._step = step
        self.autorun: bool = autorun
        self.everything: bool = everything
        self._before: Registry | None = None
        self._after: registry.Step
        self.done: Flag = Flag()
        self.dropped: bool = False
        self.error: BaseException | None = None

    def step(self, reg: Registry) -> registry.Step:
        """The registry that follows `reg`, and what differs. Computed again only for another one."""
        if self._before is not reg:
            self._after = self._step(reg)
            self._before = reg
        return self._after

    def drop(self, error: BaseException | None = None) -> None:
        """Have it change nothing, and raise `error` if there is one. Before it is made."""
        self.dropped, self.error = True, error


def nothing(reg: Registry) -> registry.Step:
    """The step that changes nothing."""
    return reg, ()


class Shared:
    """`life` is the present lifetime, from `start` until the end of `stop`; None on a stopped notifier.

    `notify(batch, since)` puts notifications into mailboxes, as `Dispatcher.post`.
    """

    def __init__(
        self, dispatcher: Dispatcher, notify: Notify, start_workers: Callable[[], object], reg: Registry = EMPTY
    ) -> None:
        self.dispatcher: Dispatcher = dispatcher
        self.lock: Any = dispatcher.lock
        self.notify: Notify = notify
        self.start_workers: Callable[[], object] = start_workers
        self.registry: Registry = reg
        self.forgotten: deque[Step] = deque()  # that end streams which Python has collected
        self.life: Lifetime | None = None
        self.stopped: Flag = Flag(True)
        self.stopped_since: datetime = now()
        self.restarts: int = 0
        self.reconnects: int = 0
        self.last_error: str | None = None
        self.confirmed: datetime | None = None  # as of the last lifetime that had a session

    # -- under the lock ----------------------------------------------------------------------------------------

    def difference(self, life: Lifetime, request: Request) -> tuple[list[str], list[str]]:
        """The channels to listen to and to listen to no longer. SYSCHAN is always listened to."""
        reg, touched = request.step(self.registry)
        if not request.autorun:
            return [], []
        session = life.session
        active = session.active if session is not None else NO_CHANNELS
        names = {*life.pending, *(name for name, _ in touched)}
        if request.everything:
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
        since: datetime | None = None,
    ) -> None:
        """Make `new` the registry; `changed` channels are listened to since, or no longer.

        Everything committed before `since` has arrived; None: before `Session.confirmed`.
        """
        self.registry = new
        session = life.session if life is not None else None
        touched = (*touched, *((name, None) for name in changed))
        if life is None or session is None:
            self.dispatcher.commit(new, touched, now() if life is None else life.confirmed, NO_CHANNELS)
            return
        for name, _ in touched:
            if registry.is_valid(new, name) is (name in session.active) or name in refused or name == SYSCHAN:
                life.pending.discard(name)
            else:
                life.pending.add(name)
        self.dispatcher.commit(new, touched, since or session.confirmed, session.active)

    def publish(self, life: Lifetime, session: Session, refused: Iterable[str]) -> None:
        """A new session listens to what was wanted; what has changed since is pending."""
        reg = self.registry
        life.pending = {*registry.valid_channels(reg)}.symmetric_difference(session.active).difference(refused)
        touched = [(name, None) for name in reg.channels]
        self.dispatcher.commit(reg, touched, session.confirmed, session.active)

    def record(self, life: Lifetime) -> list[Request]:
        """Make the changes that wait for a session that is gone: the next one begins with them."""
        if self.life is not life:
            return []
        waiting = list(life.requests)
        life.requests.clear()
        for request in waiting:
            if request.dropped:
                continue
            try:
                self.commit(life, *request.step(self.registry))
            except Exception as error:
                request.error = error
        return waiting

    # -- on a listener thread ----------------------------------------------------------------------------------

    def wanted(self) -> list[str]:
        """The channels that a new session has to listen to."""
        return [SYSCHAN, *registry.valid_channels(self.registry)]

    def hand_over(self, life: Lifetime, session: Session) -> float:
        """Move the backlog into mailboxes; after how many seconds to try again, where some have no room, else 0."""
        while session.backlog and self.life is life:
            batch = session.backlog[0]
            count, seconds = self.notify(batch.notifications, batch.since)
            session.handed_over(count)
            if seconds:
                return seconds
        return 0.0

    def refused(self, life: Lifetime, refused: Mapping[str, Exception]) -> None:
        """Log the names that the server refuses, and raise an event for each."""
        for name, error in refused.items():
            log(ERROR, "the server refuses to listen to channel %r: %s", name, describe(error))
            self.event(life, {"event": "channel_refused", "channel": name, "error": describe(error)})

    def event(self, life: Lifetime, payload: dict[str, Any]) -> None:
        """Tell SYSCHAN's subscribers, unless the lifetime is over: `stop` does not wait for ever for a thread."""
        with self.lock:
            if self.life is life:
                self.dispatcher.event(payload)
        self.dispatcher.turns.wake()

    def report(self, requests: Iterable[Request]) -> None:
        """Have the callers go on, whose changes are made or refused."""
        self.dispatcher.turns.wake()
        for request in requests:
            request.done.set()

    def end(self, life: Lifetime, event: dict[str, Any] | None) -> None:
        """The lifetime is over: nothing is posted after `event`. A second call does nothing."""
        with self.lock:
            if self.life is not life:
                return  # another thread was first
            waiting = self.record(life)
            self.dispatcher.halt(event, life.confirmed)
            if life.published:
                self.confirmed = life.confirmed
            self.stopped_since, self.life = now(), None
        self.report(waiting)
