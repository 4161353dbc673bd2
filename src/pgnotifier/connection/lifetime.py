"""The state of a notifier from one `start` until its `stop`. No I/O but to close.

`NEXT` is the table of phases; `docs/internals.md` shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from threading import Thread, get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..clock import now
from ..flag import Flag
from .waiting import GIVEN_UP, Abandoned, CancelToken

if TYPE_CHECKING:
    from ..types import DbConf
    from .exchange import Batch
    from .session import Session


class Phase(Enum):
    """What a notifier is doing."""

    STOPPED = "there is no listener"
    CONNECTING = "the first connection is being made"
    LISTENING = "there is a session"
    RECONNECTING = "the session was lost, and the next one is being made"
    STOPPING = "the listener is being ended"


STOPPED, CONNECTING, LISTENING, RECONNECTING, STOPPING = Phase

NEXT: dict[Phase, frozenset[Phase]] = {
    STOPPED: frozenset({CONNECTING}),
    CONNECTING: frozenset({LISTENING, STOPPING, STOPPED}),
    LISTENING: frozenset({RECONNECTING, STOPPING, STOPPED}),
    RECONNECTING: frozenset({LISTENING, STOPPING, STOPPED}),
    STOPPING: frozenset({STOPPED}),
}


@dataclass(eq=False)
class Lifetime:
    """Everything that belongs to one `start` until its `stop`. Changed under the state lock.

    The thread `listener` owns `session` and `loop`. `requests` are changes that wait for it. `pending` are channels
    for which the registry and the session may differ.
    """

    source: DbConf
    heartbeat: float | None
    retry_delay: tuple[float, float]
    connect_wait: float = 0.0  # seconds for which the first connection is tried again
    phase: Phase = CONNECTING
    since: datetime = field(default_factory=now)  # when this phase began
    starter: int = field(default_factory=get_ident)  # the thread that called `start`
    begun: bool = False  # the first thread runs
    published: bool = False  # there has been a session
    token: CancelToken = field(default_factory=CancelToken)
    loop: asyncio.AbstractEventLoop | None = None
    readable: asyncio.Event | None = None
    session: Session | None = None
    listener: Thread | None = None
    requests: deque[Any] = field(default_factory=deque)
    pending: set[str] = field(default_factory=set)
    started: Flag = field(default_factory=Flag)  # the first connection is there, or `error` is set
    ended: Flag = field(default_factory=Flag)  # everything is closed
    error: BaseException | None = None
    confirmed: datetime = field(default_factory=now)  # `Session.confirmed` at the end of the last session
    drains: bool = False  # `stop(drain=True)` wants `rest`, which arrived and found no room
    rest: deque[Batch] = field(default_factory=deque)
    up_since: float = field(default_factory=monotonic)
    down_since: float = field(default_factory=monotonic)
    attempt: int = 0
    open: list[bool] = field(default_factory=lambda: [True])  # emptied by the first `close`

    @property
    def stopping(self) -> bool:
        return self.phase is STOPPING

    @property
    def is_listening(self) -> bool:
        return self.phase is LISTENING

    def check(self) -> None:
        """Raise `Abandoned` if the notifier is being stopped."""
        if self.stopping:
            raise Abandoned(GIVEN_UP)

    def to(self, phase: Phase) -> None:
        """Change the phase, under the state lock. Raises `RuntimeError`, nothing changed, if `NEXT` forbids it."""
        if phase not in NEXT[self.phase]:
            raise RuntimeError(f"a notifier can't go from {self.phase.name} to {phase.name}")
        self.phase, self.since = phase, now()

    def wake(self) -> None:
        """Wake the listener, to look for changes, room in mailboxes, and its end. Any thread, without the lock."""
        readable, loop = self.readable, self.loop
        if readable is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(readable.set)

    def keep(self, session: Session) -> None:
        """Keep what the session has read for `stop(drain=True)`, and read the rest for it. The listener thread."""
        if self.drains:
            with contextlib.suppress(Exception):  # the backlog keeps what was read before
                session.read()
        self.confirmed, self.rest = session.confirmed, session.backlog

    def close(self) -> None:
        """Close what it holds, once. On its last thread, or on the caller's if none could be started."""
        try:
            self.open.pop()
        except IndexError:
            return
        session, self.session = self.session, None
        if session is not None:
            session.close()
        self.token.close()
        if self.loop is not None:
            self.loop.close()
        self.started.set()
        self.ended.set()
