"""One connection that listens, for that connection's life: which channels it listens to, and whether it still does.

One listener thread at a time touches it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from pyrsistent import PMap, pmap

from ..clock import now
from ..errors import CannotListen
from .connect import connect
from .conninfo import is_lasting
from .exchange import ANSWER_SECONDS, Exchange, quote
from .waiting import Abandoned, CancelToken, answer

if TYPE_CHECKING:
    from ..types import DbConf

LATE_SECONDS = 1.0  # after which an overdue answer is one that the listener thread does not look for
PROOF_SECONDS = 2.0  # for a notification to come through a pooler

# How a server refuses a name that its encoding cannot hold.
REFUSALS = (psycopg.DataError, psycopg.ProgrammingError)

# What a session must still be: the same server process, listening to as many channels.
# Everything has its schema, lest the search_path of a role or database makes it anything else (guarantee 12).
CHECK = b"SELECT pg_catalog.pg_backend_pid(), (SELECT pg_catalog.count(*) FROM pg_catalog.pg_listening_channels())"
_PID = b"SELECT pg_catalog.pg_backend_pid()"

# PostgreSQL before 18.2 may answer 58P01 to every LISTEN, until this has been asked (guarantee 10).
_CURE = b"SELECT pg_catalog.pg_notification_queue_usage()"
_CURABLE = "58P01"


class Session(Exchange):
    """A connection, and `active`: the channels that the server was told to listen to. `pid` is the server process."""

    def __init__(self, source: DbConf, heartbeat: float | None, token: CancelToken) -> None:
        """Connect. Raises `psycopg.Error`, and leaves nothing open then."""
        super().__init__(source, heartbeat, token)
        self.active: PMap[str, bool] = pmap()
        self._listening = 0  # how many channels the server listens to
        self._heard = monotonic()
        try:
            self.pid: int = int(self._ask(CHECK)[-1].get_value(0, 0))
        except BaseException:
            self.close()
            raise

    def discard(self, names: Collection[str]) -> None:
        """Throw away what waits in the backlog for those of the channels that are listened to no longer.

        Otherwise it would be delivered after the gap, as soon as they are listened to again.
        """
        left = {name for name in names if name not in self.active}
        if left:
            for batch in self.backlog:
                batch.notifications = [n for n in batch.notifications if n.channel not in left]

    def listen(
        self, add: Collection[str], remove: Collection[str] = (), relieve: Callable[[], float] | None = None
    ) -> None:
        """Listen to `add` and no longer to `remove`, in one round trip.

        `relieve()` hands over what arrives before the answer; it returns how long to wait for room at the most.
        All or nothing: after a refusal (one of `REFUSALS`) the channels are as before; any other error is a loss.
        """
        commands = [f"LISTEN {quote(name)}" for name in add] + [f"UNLISTEN {quote(name)}" for name in remove]
        if not commands:
            return
        sql = ";".join(commands).encode()
        try:
            self._ask(sql, relieve)
        except psycopg.OperationalError as error:
            if error.sqlstate != _CURABLE:
                raise
            self._ask(_CURE, relieve)
            self._ask(sql, relieve)
        active = self.active.evolver()
        for name in add:
            active[name] = True
        for name in remove:
            if name in self.active:
                active.remove(name)
        self.active = active.persistent()
        self._listening = len(self.active)

    def leave(self, names: Collection[str]) -> None:
        """From now on nobody counts on these channels; `listen` is about to tell the server."""
        active = self.active.evolver()
        for name in names:
            active.remove(name)
        self.active = active.persistent()

    def listen_where_allowed(
        self, add: Collection[str], remove: Collection[str] = (), relieve: Callable[[], float] | None = None
    ) -> dict[str, psycopg.Error]:
        """As `listen`, for all names that the server takes; returns those that it refused, each with its reason."""
        try:
            self.listen(add, remove, relieve)
        except REFUSALS as error:
            names = list(add)
            if len(names) == 1 and not remove:
                return {names[0]: error}
            half = len(names) // 2
            refused = {**self.listen_where_allowed(names[:half]), **self.listen_where_allowed(names[half:])}
            self.listen((), remove)  # last: `confirmed` is the moment before it
            return refused
        return {}

    def verify(self) -> None:
        """Ask the server whether this session listens. Raises `CannotListen`, `psycopg.OperationalError`.

        A notification says so too; the answer, which may be late where they come fast, is left to `check` then.
        """
        moment = self._heard = monotonic()
        if self._asked is None:  # otherwise it was asked before, and a notification came first
            self._asked = (moment, now())
            self._send(CHECK)
        while self._asked is not None and not self.backlog:
            self._send()
            if not self._token.wait(moment + self._limit, self.fileno):
                raise psycopg.OperationalError(f"no answer from the server within {self._limit:g} seconds")
            self.read()

    def prove(self, source: DbConf) -> None:
        """Behind a pooler, see that a notification from another connection is heard. Raises `CannotListen`.

        A pooler shows itself by another pid than the server process has. One that pools by transaction cannot be
        seen from this side alone: while it has a single client, that meets its own LISTEN again.
        """
        if self._conn.pgconn.backend_pid == self.pid:
            return
        channel = f"pgnotifier_{os.urandom(16).hex()}"
        self.listen([channel])
        limit = min(self._heartbeat or ANSWER_SECONDS, PROOF_SECONDS)
        deadline = monotonic() + limit
        other = connect(source, self._token, deadline)
        try:
            other.pgconn.send_query(_PID + f"; NOTIFY {channel}".encode())
            results = answer(other, self._token, deadline, limit)
            heard = int(results[0].get_value(0, 0)) != self.pid
            while heard and not any(n.channel == channel for b in self.backlog for n in b.notifications):
                heard = self._token.wait(deadline, self.fileno)
                self.read()
        finally:
            other.close()
        if not heard:
            raise CannotListen(
                "a pooler in transaction mode is in between, in which notifications are lost: connect to PostgreSQL "
                "directly, or have the pooler pool by session (pool_mode=session)"
            )
        self.listen((), [channel])
        self.backlog.clear()  # nothing else was listened to
        self._backlog_bytes = 0

    @property
    def silent_for(self) -> float:
        """Seconds without an answer to the heartbeat, if that is overdue; else 0. Any thread."""
        if self._heartbeat is None:
            return 0.0
        moment, answered = monotonic(), self._answered
        overdue = max(answered + 2 * self._heartbeat, self._heard + self._heartbeat) + LATE_SECONDS
        return moment - answered if moment > overdue else 0.0

    def check(self, heard: float) -> float:
        """Ask the server where that is due; bytes have come at the moment `heard` (monotonic seconds).

        Returns when (monotonic seconds) to come again. Raises `psycopg.OperationalError` where an answer is overdue.
        The question goes out every `heartbeat` seconds under traffic too, so that `confirmed` stays recent; but only
        silence for `heartbeat` seconds counts against the connection.
        """
        if self._heartbeat is None:
            return inf
        moment = monotonic()
        self._heard = max(self._heard, heard)
        if self._asked is None:
            due = self._answered + self._heartbeat
            if moment < due:
                return due
            self._asked = (moment, now())
            self._send(CHECK)
        self._send()
        overdue = max(self._asked[0], self._heard) + self._heartbeat
        if moment >= overdue:
            raise psycopg.OperationalError(f"no answer from the server within {self._heartbeat:g} seconds")
        return overdue

    def _judge(self, results: list[Any]) -> None:
        """Compare a check's answer with what the session should be."""
        asked, self._asked, self._partial = self._asked, None, []
        if asked is not None:
            self._confirm(asked[1])
            self._answered = asked[0]  # the next question is due when this answer would have been overdue
        pid, listening = (int(results[-1].get_value(0, column)) for column in (0, 1))
        if pid != self.pid or listening != self._listening:
            raise CannotListen(
                f"the session listens to {listening} of {self._listening} channels (server process {pid}, at first "
                f"{self.pid}): a pooler in transaction mode, or an UNLISTEN; connect to PostgreSQL directly, or pool "
                "by session"
            )


def lasts(error: psycopg.OperationalError) -> bool:
    """Whether the next attempt to connect would fail in the same way, because the server was reached and refuses."""
    return isinstance(error, Abandoned | CannotListen) or is_lasting(str(error))
