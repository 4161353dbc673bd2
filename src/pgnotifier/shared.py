"""What callers and listener threads share: the wanted registry, the present lifetime, and their difference.

Threads change it under the state lock, which is the dispatcher's; readers take no lock.
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
    """A change that may wait for the server.

    `autorun`: send LISTEN and UNLISTEN first. `everything`: compare all channels, not only those of the step.
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
        """Return the registry that follows `reg`, and what differs. Computed once for each `reg`. Under the lock."""
        if self._before is not reg:
            self._after = self._step(reg)
            self._before = reg
        return self._after

    def drop(self, error: BaseException | None = None) -> None:
        """Make it change nothing and raise `error`, if given, for its caller. Before it is made."""
        self.dropped, self.error = True, error


def nothing(reg: Registry) -> registry.Step:
    """Return `reg` itself: the step that changes nothing."""
    return reg, ()


class Shared:
    """One notifier's state. `life` is the lifetime from `start` until the end of `stop`, None if it is stopped.

    `notify(batch, since)` puts notifications into mailboxes, as `Dispatcher.post` does.
    """

    def __init__(
        self, dispatcher: Dispatcher, notify: Notify, start_workers: Callable[[], object], reg: Registry = EMPTY
    ) -> None:
        self.dispatcher: Dispatcher = dispatcher
        self.lock: Any = dispatcher.lock
        self.notify: Notify = notify
        self.start_workers: Callable[[], object] = start_workers
        self.registry: Registry = reg
        self.forgotten: deque[Step] = deque()  # steps that end collected streams
        self.life: Lifetime | None = None
        self.stopped: Flag = Flag(True)
        self.stopped_since: datetime = now()
        self.restarts: int = 0
        self.reconnects: int = 0
        self.last_error: str | None = None
        self.confirmed: datetime | None = None  # of the last lifetime that had a session

    # -- under the lock ----------------------------------------------------------------------------------------

    def difference(self, life: Lifetime, request: Request) -> tuple[list[str], list[str]]:
        """Return the channels to LISTEN and to UNLISTEN. SYSCHAN is always listened to."""
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
        """Make `new` the registry. LISTEN or UNLISTEN has been sent for the `changed` channels.

        Everything committed before `since` (None: `Session.confirmed`) has arrived.
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
        """Make calls follow a new session. Channels that have changed while it connected are pending."""
        reg = self.registry
        life.pending = {*registry.valid_channels(reg)}.symmetric_difference(session.active).difference(refused)
        touched = [(name, None) for name in reg.channels]
        self.dispatcher.commit(reg, touched, session.confirmed, session.active)

    def record(self, life: Lifetime) -> list[Request]:
        """Make the changes that wait for a lost session, and return them; the next session listens accordingly."""
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
        """Return the channels that a new session has to listen to."""
        return [SYSCHAN, *registry.valid_channels(self.registry)]

    def hand_over(self, life: Lifetime, session: Session) -> float:
        """Move the backlog into mailboxes; return after how many seconds to try again if some are full, else 0."""
        while session.backlog and self.life is life:
            batch = session.backlog[0]
            count, seconds = self.notify(batch.notifications, batch.since)
            session.handed_over(count)
            if seconds:
                return seconds
        return 0.0

    def refused(self, life: Lifetime, refused: Mapping[str, Exception]) -> None:
        """Log the names that the server refuses, and send an event for each."""
        for name, error in refused.items():
            log(ERROR, "the server refuses to listen to channel %r: %s", name, describe(error))
            self.event(life, {"event": "channel_refused", "channel": name, "error": describe(error)})

    def event(self, life: Lifetime, payload: dict[str, Any]) -> None:
        """Send an event to SYSCHAN's subscribers, unless `stop` has ended the lifetime without this thread."""
        with self.lock:
            if self.life is life:
                self.dispatcher.event(payload)
        self.dispatcher.turns.wake()

    def report(self, requests: Iterable[Request]) -> None:
        """Let the callers return whose changes are made or refused."""
        self.dispatcher.turns.wake()
        for request in requests:
            request.done.set()

    def end(self, life: Lifetime, event: dict[str, Any] | None) -> None:
        """End the lifetime: nothing is posted after `event`. A second call does nothing. Any thread."""
        with self.lock:
            if self.life is not life:
                return  # another thread was first
            waiting = self.record(life)
            self.dispatcher.halt(event, life.confirmed)
            if life.published:
                self.confirmed = life.confirmed
            self.stopped_since, self.life = now(), None
        self.report(waiting)
