"""Changes of the registry: callers begin them, and the listener thread sends LISTEN and UNLISTEN for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from .registry import Registry, Touched, is_valid
from .shared import Request, Shared, Step, nothing

if TYPE_CHECKING:
    import psycopg

    from .connection import Lifetime, Session


def begin(
    shared: Shared, step: Step, autorun: bool = True, everything: bool = False, ordered: bool = False
) -> Request:
    """Begin a change and return its request, which is done when the change is made, perhaps at once. Does not wait.

    With `autorun` and a session, the listener first sends LISTEN and UNLISTEN for channels that differ. `ordered`:
    changes that wait for the server are made first. Any thread. Raises what `step` raises; nothing has changed then.
    """
    request = Request(step, autorun, everything)
    with shared.lock:
        life = shared.life
        while shared.forgotten:
            shared.commit(life, *shared.forgotten.popleft()(shared.registry))
        live = life if life is not None and life.is_listening else None
        if live is not None and ((ordered and live.requests) or any(shared.difference(live, request))):
            live.requests.append(request)
        else:
            shared.commit(life, *request.step(shared.registry))
            request.done.set()
    shared.dispatcher.turns.wake()
    if live is not None and not request.done.is_set():
        live.wake()
    return request


def take_back(shared: Shared, request: Request, undo: Step) -> None:
    """Drop a request that still waits for the listener, else make `undo`. Any thread. Does not wait."""
    with shared.lock:
        if shared.life is not None and request in shared.life.requests:
            request.drop()
            return
    release(shared, undo)


def release(shared: Shared, step: Step) -> None:
    """Make a removing step at once; the listener sends the UNLISTEN later. Any thread. Does not wait."""
    begin(shared, step, autorun=False)
    begin(shared, nothing)


def serve(shared: Shared, life: Lifetime, session: Session, fresh: bool = False) -> None:
    """Make the changes that wait, and report each; with a `fresh` session, first send what differs anyway.

    The listener thread, without the lock. If the registry has changed while the server answered, a change is computed
    again under the lock, so that no other change is lost. Raises `psycopg.Error` if the session is lost.
    """
    if fresh:
        _Change(shared, life, session, Request(nothing)).make()
    while life.requests:
        with shared.lock:
            life.check()
            request = life.requests[0]
        _Change(shared, life, session, request).make()


class _Change:
    """One change that the server has to follow. The listener thread."""

    def __init__(self, shared: Shared, life: Lifetime, session: Session, request: Request) -> None:
        self._shared, self._life, self._session, self._request = shared, life, session, request
        self._changed: set[str] = set()  # channels that LISTEN or UNLISTEN was sent for
        self._refused: set[str] = set()
        self._since: datetime | None = None  # `confirmed` of the first UNLISTEN

    def make(self) -> None:
        request, life = self._request, self._life
        while not request.dropped:
            with self._shared.lock:
                life.check()
                try:
                    new, touched = request.step(self._shared.registry)
                    add, remove = self._shared.difference(life, request)
                except Exception as error:
                    request.drop(error)
                    continue
                add = [name for name in add if name not in self._refused]
                if not (add or remove or request.dropped):
                    self._commit(new, touched)
                    break
                self._session.leave(remove)
            found = self._tell(add, remove)
            own = found.keys() & (add if request.everything else {name for name, _ in touched})
            if own:
                request.drop(found[min(own)])
            self._shared.refused(life, {name: error for name, error in found.items() if name not in own})
        else:
            self._undo()
        self._shared.report([request])

    def _tell(self, add: list[str], remove: list[str]) -> dict[str, psycopg.Error]:
        """Send LISTEN for `add` and UNLISTEN for `remove`; return the names that the server refuses."""

        def hand_over() -> float:
            return self._shared.hand_over(self._life, self._session)

        hand_over()
        found = self._session.listen_where_allowed(add, remove, hand_over)
        if remove and self._since is None:
            self._since = self._session.confirmed
        self._changed.update(add, remove)
        self._refused.update(found)
        return found

    def _commit(self, new: Registry, touched: Iterable[Touched]) -> None:
        """Make `new` the registry, and remove the request. Under the lock."""
        self._shared.commit(self._life, new, touched, self._changed, self._refused, self._since)
        self._session.discard(self._changed)
        with contextlib.suppress(ValueError):  # that of a fresh session never waited
            self._life.requests.remove(self._request)

    def _undo(self) -> None:
        """Take back what was sent, except for channels that others want since. The registry stays as it is."""
        life, session = self._life, self._session
        with self._shared.lock:
            life.check()
            reg, told = self._shared.registry, self._changed - self._refused
            back = [n for n in told if n in session.active and (n in life.pending or not is_valid(reg, n))]
            again = [n for n in told if n not in session.active and (n in life.pending or is_valid(reg, n))]
            session.leave(back)
            # Until the answer these channels are not covered.
            self._shared.commit(life, reg, (), self._changed, self._refused, self._since)
        if back or again:
            self._tell(again, back)
        with self._shared.lock:
            life.check()
            self._commit(self._shared.registry, ())
