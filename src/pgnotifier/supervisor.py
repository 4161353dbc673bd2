"""What is wanted, and the one function that has the server follow it.

`change` computes the next registry, `apply` has the server listen to it and makes it the one that counts; where
there is no connection it is recorded, and the next connection begins with all of it. One lock is held to swap
values and for nothing else; others serialise changes, and starts. User code never runs under them, but for a callable
`dbconf` that is asked in `start`. All are reentrant, because a signal handler may call anything anywhere.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from time import monotonic
from typing import Any

import psycopg

from . import registry
from .connection.connect import Abandoned
from .connection.link import STOP_TIME, History, Link, Setting
from .connection.session import REFUSALS, Session, now
from .delivery.dispatcher import NOTHING, Delivery
from .flag import Flag
from .log import ERROR, INFO, log
from .registry import EMPTY, Registry
from .types import DbConf

RELIEF_TIME = 0.05  # seconds that a change under way waits for room in mailboxes before it looks at the server again

STOPPED: dict[str, Any] = {"event": "stopped"}
Step = Callable[[Registry], Registry]


class Keeper:
    """`registry` is what the user wants, `link` what there is between `start` and `stop`, else None."""

    def __init__(
        self,
        source: DbConf,
        heartbeat: float | None,
        retry_delay: tuple[float, float],
        delivery: Delivery,
        notify: Callable[[list[Any], datetime, Callable[[], bool]], int],
        reg: Registry = EMPTY,
    ) -> None:
        self.registry: Registry = reg
        self.link: Link | None = None
        self._unfinished: list[Link] = []  # whose end is under way
        self.history: History = History()
        self.stopped: Flag = Flag(True)
        self._delivery, self._notify = delivery, notify
        self._lock = threading.RLock()
        self._changing = threading.RLock()
        self._starting = threading.RLock()
        self._in_change = False
        self._waiting: deque[tuple[Step, Callable[[Registry], None] | None]] = deque()
        self._setting = Setting(
            source, heartbeat, retry_delay, delivery, notify, lambda: self.registry, self._lock, self.history
        )

    @property
    def running(self) -> bool:
        """From `start` to `stop`, connected or not."""
        link = self.link
        return link is not None and not link.closed

    @property
    def session(self) -> Session | None:
        """What is listened with now."""
        link = self.link
        return link.session if link is not None and not link.closed else None

    # -- changes -------------------------------------------------------------------------------------------

    def change(self, step: Step, apply: Callable[[Registry], None] | None) -> None:
        """Compute the next registry, and `apply` it (None: record it, and leave what is listened to as it is).

        Within a change that it interrupts (a signal handler), and on the listener thread (a log handler, a
        finalizer), the change is made as soon as can be, and this returns at once.
        """
        link = self.link
        if link is not None and link.is_here:
            threading.Thread(target=self.change, args=(step, apply), name="pgnotifier-change", daemon=True).start()
            return
        with self._changing:
            if self._in_change:
                self._waiting.append((step, apply))
                return
            self._in_change = True
            try:
                self._change(step, apply)
            finally:
                try:
                    while self._waiting:
                        try:
                            self._change(*self._waiting.popleft())
                        except Exception as error:
                            log(ERROR, "a change that was made within another failed", error=error)
                finally:
                    self._in_change = False  # after Ctrl-C too: else no change would ever be made again

    def _change(self, step: Step, apply: Callable[[Registry], None] | None) -> None:
        new = step(self.registry)
        if apply is not None:
            apply(new)
        elif new is not self.registry:
            with self._lock:
                self._swap(new)

    def apply(self, new: Registry) -> None:
        """Have the server listen to what `new` makes valid, then make it the registry.

        The listener thread gives way for it, and starts the next one, which reads what comes after.

        Where the server refuses a name that `new` brought, that error is raised, and nothing has changed.
        """
        with self._changing:
            while not self._apply(new):
                pass  # the connection was lost, and is back, meanwhile

    def _apply(self, new: Registry) -> bool:
        """Whether that is done; not where the session is another one by now."""
        with self._lock:
            link, session = self.link, self.session
            if link is None or session is None:
                self._swap(new)
                return True
            differ = [name for name in new.stale if registry.is_valid(new, name) != (name in session.active)]
            add = [name for name in differ if name not in session.active]
            remove = [name for name in differ if name in session.active]
            if not add and not remove:
                if new is not self.registry or new.stale:
                    self._swap(new, told=True)
                return True
            # Were it to end half way, what the server was told of is compared anew.
            self.registry = registry.unsure(self.registry, differ)
            if link.listener is not None:
                link.listener.ask_to_give_way()
        self.history.restarts += 1
        link.wished = True
        try:
            with link.turn:
                link.wished = False
                return self._listen(link, session, new, add, remove)
        finally:
            link.wished = False

    def _listen(self, link: Link, session: Session, new: Registry, add: list[str], remove: list[str]) -> bool:
        # A name that an earlier call left pending does not make another call fail; to apply it was asked for here.
        own = set(add) if new.channels is self.registry.channels else {name for name, _ in new.touched}
        well = session.well
        try:
            if link.session is session:  # else lost while the thread ended
                link.hand_over(session)
                refused = session.listen_where_allowed(add, remove, lambda: link.hand_over(session, RELIEF_TIME))
                if own & refused.keys():
                    added = [name for name in add if name not in refused]
                    session.listen_where_allowed(remove, added)
                    raise refused[next(iter(own & refused.keys()))]
                link.report_refused(refused)
        except REFUSALS:
            raise
        except psycopg.Error as error:
            link.lost(session, error)
        except BaseException as error:  # Ctrl-C in mid-command: what would follow on this session is undefined
            link.lost(session, error)
            raise
        with self._lock:
            if self.session is session:
                self._swap(new, [*add, *remove], well, told=True)
            elif self.session is None:
                self._swap(new)
            else:
                return False
        return True

    def _swap(
        self, new: Registry, changed: Iterable[str] = (), well: datetime | None = None, told: bool = False
    ) -> None:
        """Make `new` the registry, by which calls are made from now on; under the lock."""
        session = self.session
        touched = new.touched
        if session is None or told:  # a connection to come begins with all that is valid
            new = registry.told(new)
        self.registry = new = registry.recorded(new)
        if session is None:
            self._delivery.publish(new, touched, NOTHING, (), well or now())
        else:
            self._delivery.publish(new, touched, session.active, changed, well or session.well)

    # -- start and stop ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and begin to listen, where there is no link; else apply what is pending."""
        link = self.link
        if link is not None and not link.closed and link.is_here:
            self.change(registry.untold, self.apply)  # in another thread: a change may be waiting for this one to end
            return
        with self._starting:
            link = None
            try:
                with self._changing:
                    if self.running:
                        self.change(registry.untold, self.apply)  # after the one that this interrupts, where it does
                        return
                    if self.link is not None:  # a stop() that has not come to it yet: it is ended before all begins
                        self._finish(self.link, undisturbed=True)
                    self._finish_rest()
                    link = Link(self._setting)
                    with self._lock:
                        self.registry = registry.renewed(self.registry)
                        self.stopped.clear()
                        self.link = link
                self._delivery.start(self.registry)
                session = link.connect()  # changes are recorded meanwhile, and the connection begins with them
                self._delivery.event({"event": "connected"})
                log(INFO, "connected, listening to %d channels", len(session.active) - 1)
                link.spawn()
            except BaseException as error:
                if link is None:
                    raise
                overtaken = link.closed and isinstance(error, Abandoned)
                with self._changing:
                    self._drop(link, None)
                if not overtaken:  # by another thread's stop(), which then has the last word
                    raise

    def _drop(self, link: Link, event: dict[str, Any] | None) -> None:
        """End a link that could not begin, or not go on."""
        link.closed = True
        self._finish(link, undisturbed=True, event=event)
        link.end(undisturbed=True)  # where a stop() had no time to
        if not self._delivery.in_a_callback():
            self._delivery.wait(monotonic() + STOP_TIME)
        if self.link is None:
            self.stopped.set()

    def stop(self, deadline: float, drain: bool) -> None:
        """End the listener, then the workers, until `deadline` (monotonic seconds) at most; drop what waits."""
        wait = not self._delivery.in_a_callback()
        drain = drain and wait
        with self._lock:
            link = self.link
            if link is not None:
                link.closed = True
        if link is None and self._unfinished:
            with self._starting, self._changing:
                self._finish_rest()
        if link is not None:
            link.give_up()
            # Another thread may be connecting, or between two listener threads; what it waits for was given up.
            latest = monotonic() + STOP_TIME
            held: list[Any] = []
            try:
                for lock in (self._starting, self._changing):
                    if lock.acquire(timeout=_left(latest)):
                        held.append(lock)
                rest = self._finish(link, len(held) == 2, drain)
                if len(held) == 2:
                    self._finish_rest()
            finally:
                for lock in reversed(held):
                    lock.release()
            if drain:
                self._notify(rest, link.well, lambda: monotonic() > deadline)
                self._delivery.drain(deadline)
                with self._changing:
                    if self.link is None:  # else it was started again meanwhile, and goes on
                        self._delivery.halt(STOPPED, now())
        if wait:
            self._delivery.wait(deadline)
        with self._lock:
            if self.link is None:
                self.stopped.set()

    def _finish(
        self, link: Link, undisturbed: bool, drain: bool = False, event: dict[str, Any] | None = STOPPED
    ) -> list[Any]:
        """End a closed link, and calls; with `drain` not the calls, and return what had arrived."""
        with self._lock:
            if self.link is not link:
                return []  # another thread was first
            self._unfinished.append(link)
            self.link = None
        rest = link.end(undisturbed, drain)
        if drain:
            self._delivery.deaf("stopped", link.well)
        else:
            self._delivery.halt(event, link.well)
        self._unfinished.remove(link)
        return rest

    def _finish_rest(self) -> None:
        """End what Ctrl-C kept an earlier end from; under the locks of starts and of changes."""
        for link in tuple(self._unfinished):
            link.end(undisturbed=True)
            self._delivery.halt(STOPPED, link.well)
            self._unfinished.remove(link)


def _left(deadline: float) -> float:
    return max(0.0, deadline - monotonic())
