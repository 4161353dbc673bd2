"""What a notifier is doing, and what it holds, between one `start` and its `stop`. No I/O but to close.

`NEXT` is the table of phases; `docs/internals.md` shows it.
"""

from __future__ import annotations

import asyncio
from _thread import allocate_lock
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..clock import now
from ..flag import Flag
from .exchange import Batch
from .session import Session
from .waiting import CancelToken

if TYPE_CHECKING:
    from ..types import DbConf
    from .listener import Listener


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
    """What belongs to one `start` until its `stop`. Changed under the state lock, but for what a thread owns.

    `turn` is held by the listener thread that runs `loop` and owns `session`. `listener` is the newest; `next` is the
    same until it begins to make changes, and others may join. `pending` are names that may differ from the session's.
    """

    source: DbConf
    heartbeat: float | None
    retry_delay: tuple[float, float]
    phase: Phase = CONNECTING
    since: datetime = field(default_factory=now)  # when this phase began
    token: CancelToken = field(default_factory=CancelToken)
    loop: asyncio.AbstractEventLoop | None = None
    turn: Any = field(default_factory=allocate_lock)
    session: Session | None = None
    listener: Listener | None = None
    next: Listener | None = None
    fresh: bool = False  # a session was just published: close the difference without a request, too
    pending: set[str] = field(default_factory=set)
    started: Flag = field(default_factory=Flag)  # the first connection is there, or `error` says why not
    ended: Flag = field(default_factory=Flag)  # everything is closed
    error: BaseException | None = None
    confirmed: datetime = field(default_factory=now)  # everything committed before had arrived at its end
    drains: bool = False  # `rest`, what had arrived and found no room, is wanted
    rest: deque[Batch] = field(default_factory=deque)
    up_since: float = field(default_factory=monotonic)
    down_since: float = field(default_factory=monotonic)
    attempt: int = 0
    open: list[bool] = field(default_factory=lambda: [True])

    @property
    def stopping(self) -> bool:
        return self.phase is STOPPING

    def to(self, phase: Phase) -> None:
        """Change the phase. Raises `RuntimeError`, nothing changed, where `NEXT` does not allow it."""
        if phase not in NEXT[self.phase]:
            raise RuntimeError(f"a notifier can't go from {self.phase.name} to {phase.name}")
        self.phase, self.since = phase, now()

    def close(self) -> None:
        """Close what it holds, once. Its last thread, or the caller where no thread could be started."""
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
