"""One listening connection: the channels that it listens to, and whether it still does.

One listener thread at a time touches it, without a lock unless a method says otherwise.
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

LATE_SECONDS = 1.0  # later than this, an overdue answer means that the listener thread is stuck
PROOF_SECONDS = 2.0  # for a notification to come through a pooler

# How a server refuses a name that its encoding cannot hold.
REFUSALS = (psycopg.DataError, psycopg.ProgrammingError)

# Asks for what must not change: the server process, and the number of channels that it listens to.
# Everything has its schema, so that no search_path of a role or database changes its meaning (guarantee 12).
CHECK = b"SELECT pg_catalog.pg_backend_pid(), (SELECT pg_catalog.count(*) FROM pg_catalog.pg_listening_channels())"
_PID = b"SELECT pg_catalog.pg_backend_pid()"

# PostgreSQL before 18.2 may answer 58P01 to every LISTEN, until this query has run (guarantee 10).
_CURE = b"SELECT pg_catalog.pg_notification_queue_usage()"
_CURABLE = "58P01"


class Session(Exchange):
    """A connection, and `active`: the channels that LISTEN was sent for. `pid` is the server process."""

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
        """Remove notifications from the backlog whose channel is among `names` and no longer active.

        Otherwise they would be delivered after the gap, as soon as the channel is listened to again. Under the lock.
        """
        left = {name for name in names if name not in self.active}
        if left:
            for batch in self.backlog:
                batch.notifications = [n for n in batch.notifications if n.channel not in left]

    def listen(
        self, add: Collection[str], remove: Collection[str] = (), hand_over: Callable[[], float] | None = None
    ) -> None:
        """Send LISTEN for `add` and UNLISTEN for `remove`, in one round trip, and wait for the answer.

        `hand_over()` moves what arrives before the answer into mailboxes; it returns the seconds to wait for room, or
        0. After a refusal (one of `REFUSALS`) the channels are as before; any other error means a lost connection.
        """
        commands = [f"LISTEN {quote(name)}" for name in add] + [f"UNLISTEN {quote(name)}" for name in remove]
        if not commands:
            return
        sql = ";".join(commands).encode()
        try:
            self._ask(sql, hand_over)
        except psycopg.OperationalError as error:
            if error.sqlstate != _CURABLE:
                raise
            self._ask(_CURE, hand_over)
            self._ask(sql, hand_over)
        active = self.active.evolver()
        for name in add:
            active[name] = True
        for name in remove:
            if name in self.active:
                active.remove(name)
        self.active = active.persistent()
        self._listening = len(self.active)

    def leave(self, names: Collection[str]) -> None:
        """Remove `names` from `active`, before their UNLISTEN is sent. Under the state lock."""
        active = self.active.evolver()
        for name in names:
            active.remove(name)
        self.active = active.persistent()

    def listen_where_allowed(
        self, add: Collection[str], remove: Collection[str] = (), hand_over: Callable[[], float] | None = None
    ) -> dict[str, psycopg.Error]:
        """Do as `listen` for all names that the server accepts; return the refused ones, each with its error."""
        try:
            self.listen(add, remove, hand_over)
        except REFUSALS as error:
            names = list(add)
            if len(names) == 1 and not remove:
                return {names[0]: error}
            half = len(names) // 2
            refused = {**self.listen_where_allowed(names[:half]), **self.listen_where_allowed(names[half:])}
            self.listen((), remove)  # last, so that `confirmed` is the time at which it was sent
            return refused
        return {}

    def verify(self) -> None:
        """Ask the server whether this session listens. Raises `CannotListen`, `psycopg.OperationalError`.

        A notification proves it too. The answer, which may be late in a burst, is then left to `check`.
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
        """Prove, if there is a pooler, that a notification from another connection arrives. Raises `CannotListen`.

        A pooler's pid differs from that of the server process. One connection does not show that a pooler pools by
        transaction: while it is the only client, it gets the same server session each time.
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
        """Query the server if that is due; return when to call again. Both times are in monotonic seconds.

        `heard` is when bytes last came. Raises `psycopg.OperationalError` if an answer is overdue. The query is sent
        every `heartbeat` seconds under traffic too, so that `confirmed` stays recent; only silence for `heartbeat`
        seconds counts as a loss.
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
        """Compare the answer to `CHECK` with the session. Raises `CannotListen` if they differ."""
        asked, self._asked, self._partial = self._asked, None, []
        if asked is not None:
            self._confirm(asked[1])
            self._answered = asked[0]  # the next query is due when this answer would have been overdue
        pid, listening = (int(results[-1].get_value(0, column)) for column in (0, 1))
        if pid != self.pid or listening != self._listening:
            raise CannotListen(
                f"the session listens to {listening} of {self._listening} channels (server process {pid}, at first "
                f"{self.pid}): a pooler in transaction mode, or an UNLISTEN; connect to PostgreSQL directly, or pool "
                "by session"
            )


def lasts(error: psycopg.OperationalError) -> bool:
    """Return True if the next attempt to connect would fail in the same way: the server was reached, and refuses."""
    return isinstance(error, Abandoned | CannotListen) or is_lasting(str(error))
