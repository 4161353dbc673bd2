"""The rounds of a consumer: find new entries, deliver a batch of them, and handle failing callbacks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import psycopg

from ..gap import Gap
from ..log import ERROR, describe, log
from ..payload import decode as default_decode
from ..types import DbConf
from .seam import Seam
from .sessions import Session
from .slices import MANY, Entry, Position, Removed, Turn, TurnEnded, news
from .work import CONFLICTS, Call, CallFailed

LONG = 8000  # characters: Python's parser can crash on longer literals
SKIP_AFTER = 5  # tries, with on_error="skip"

OnEntry = Callable[[Entry, Any], object]
OnGap = Callable[[str, str, Gap], object]
OnError = Literal["retry", "skip"] | Callable[[Entry, BaseException, int], bool]


@dataclass(frozen=True)
class Order:
    """The arguments of a consumer. With `loop`, `fn` is a coroutine function."""

    dbconf: DbConf = field(repr=False)  # it may hold a password
    schema: str
    name: str
    channels: list[str]
    fn: OnEntry
    on_gap: OnGap | None
    on_error: OnError
    batch: int
    loop: asyncio.AbstractEventLoop | None


class Rounds:
    """Runs on the consumer's thread, without a lock. Other threads read the counters."""

    def __init__(self, seam: Seam, order: Order, holder: str, stopping: Callable[[], bool]) -> None:
        self._seam, self._order = seam, order
        self._turn = Turn(order.schema, order.name, holder, order.channels, self._call, self._tell, stopping)
        self._decoded: Entry | None = None  # the latest entry that `fn` was called for
        self._tries: dict[int, int] = {}  # by entry id; 0 is a gap
        self._alone_until = 0  # entries up to this id have a transaction each
        self._slice: tuple[Position, Position] | None = None  # the position before the latest slice, and the slice
        self._gaps = False
        self.delivered: int = 0
        self.failed: int = 0
        self.skipped: int = 0
        self.last_error: str | None = None

    def begin(self) -> None:
        """Forget the slice that is not stored. Call it on a new session.

        A server that crashed, or a standby in its place, assigns transaction ids again that were never written to
        disk. The snapshot of such a slice would show these transactions as over before they have begun.
        """
        self._slice = None

    def next(self, session: Session, position: Position, tell: bool) -> Position:
        """Deliver the next batch and return the new position, or the same object if there was nothing to do.

        `tell`: gaps may wait to be reported. Raises `Moved`, and the errors that `recover` handles.
        """
        turn, slice = self._turn, position
        turn.current, turn.called = None, []
        if slice.upto is None:
            found = self._next_slice(session, position)
            if found is position and not tell and not self._gaps:
                return position
            slice = found
        most = self._order.batch
        if slice.done < self._alone_until:  # first store the slice, so that the same entries come before
            most = 0 if position.upto is None else 1
        after = session.run(turn.take(position, slice, most, tell, session.search_path), transaction=True)
        passed, turn.called = [entry.id for entry in turn.called], []
        skipped = turn.skipped.intersection(passed)
        turn.skipped -= skipped
        self.delivered += len(passed) - len(skipped)
        self.skipped += len(skipped)
        for id in passed if self._tries else ():
            self._tries.pop(id, None)
        self._tries.pop(0, None)
        return after

    def _next_slice(self, session: Session, position: Position) -> Position:
        if self._slice is not None and self._slice[0] == position:  # the latest was not delivered
            return self._slice[1]
        order = self._order
        [(now, gaps, seen, first, last)] = session.ask(news(order.schema, order.name, position))
        if gaps is None:
            raise Removed(order.name)
        self._gaps = bool(gaps)
        if first is None:
            return Position(now) if seen > MANY else position
        self._slice = position, Position(position.since, now, first - 1, last)
        return self._slice[1]

    def recover(self, error: Exception, attempt: int) -> float:
        """Handle an error of `next`, the `attempt`-th in a row; return the seconds to wait. Raises other errors."""
        turn, called = self._turn, self._turn.called
        if isinstance(error, CONFLICTS):
            return self._seam.delay(attempt)
        if isinstance(error, CallFailed):
            return self._failed(turn.current, error.error, alone=len(called) < 2)
        if not called or not isinstance(error, psycopg.Error | TurnEnded):
            raise error
        if len(called) == 1:  # such as a deferred constraint, which the server checks at the commit
            return self._failed(called[0], error, alone=True)
        self._alone_until = called[-1].id
        return 0.0

    def _failed(self, entry: Entry | None, error: BaseException, alone: bool) -> float:
        """Log, count and report a failing callback; return the seconds to wait. Entries before it come first."""
        order, id = self._order, 0 if entry is None else entry.id
        tries = self._tries[id] = self._tries.get(id, 0) + 1
        channel = None if entry is None else entry.channel
        self.failed += 1
        self.last_error = describe(error)
        call = "on_gap" if entry is None else f"entry {id} on channel {channel!r}"
        log(ERROR, "consumer %r failed at %s (try %d)", order.name, call, tries, error=error)
        event = {"event": "consumer_failed", "name": order.name, "id": id or None, "channel": channel}
        self._seam.tell({**event, "error": self.last_error, "tries": tries})
        if entry is None:
            return self._seam.delay(tries)
        self._alone_until = max(self._alone_until, id)
        if self._gives_up(entry, error, tries):
            log(ERROR, "consumer %r skips entry %d on channel %r after %d tries", order.name, id, channel, tries)
            self._turn.skipped |= {id}
            return 0.0
        return self._seam.delay(tries) if alone else 0.0

    def _gives_up(self, entry: Entry, error: BaseException, tries: int) -> bool:
        on_error = self._order.on_error
        if not callable(on_error):
            return on_error == "skip" and tries >= SKIP_AFTER
        if self._decoded is not None and self._decoded.id == entry.id:
            entry = self._decoded
        try:
            return bool(on_error(entry, error, tries))
        except Exception as failure:
            log(ERROR, "on_error of consumer %r failed", self._order.name, error=failure)
            return False

    def _call(self, entry: Entry) -> Call:
        return Call(self._invoke, (entry,))

    def _invoke(self, entry: Entry, conn: Any) -> Any:
        self._decoded = entry._replace(payload=self._decode(entry.payload))
        return self._order.fn(self._decoded, conn)

    def _decode(self, text: str) -> Any:
        decode = self._seam.decode
        if decode is not default_decode or len(text) < LONG:
            return decode(text)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def _tell(self, channel: str, gap: Gap) -> Call:
        return Call(self._on_gap, (channel, gap))

    def _on_gap(self, channel: str, gap: Gap, conn: Any) -> Any:
        name, dropped = self._order.name, "an unknown number of" if gap.dropped is None else gap.dropped
        log(ERROR, "consumer %r has missed %s entries on channel %r (%s)", name, dropped, channel, gap.reason)
        if self._order.on_gap is not None:
            return self._order.on_gap(name, channel, gap)
        return None
