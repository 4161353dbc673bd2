"""One connection that listens, for that connection's life: open, listen, drain, check, close.

Touched by one thread at a time: by who has the link's turn, the listener thread or a caller that changes channels.
What waits for the server can be ended from any thread, by the breaker that the session was given.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from datetime import datetime, timedelta, timezone
from math import inf
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from pyrsistent import PMap, pmap

from .errors import CannotListen
from .types import DbConf
from .wire import Breaker, answer, checked, connect, lost

ANSWER_TIMEOUT = 10.0  # seconds for the server to answer a change of channels, without a heartbeat (contract 10)

PROOF_TIME = 2.0  # seconds for a notification to come through a pooler

MUCH = 10_000  # notifications that may wait for the answer to a change; more are handed over before it

AHEAD = 16_000_000  # bytes of notifications, about, that are read while there is no room for them
OVERHEAD = 100  # bytes of each, about, without its payload

# How a server refuses a name that its encoding cannot hold.
REFUSALS = (psycopg.DataError, psycopg.ProgrammingError)

# A process that notifies signals the listeners just after its commit: so much earlier than the question.
SIGNAL_TIME = timedelta(milliseconds=250)

# What a session must still be: the same server process, listening to as many channels.
# Everything has its schema, lest the search_path of a role or database makes it anything else (guarantee 12).
_CHECK = b"SELECT pg_catalog.pg_backend_pid(), (SELECT pg_catalog.count(*) FROM pg_catalog.pg_listening_channels())"
_PID = b"SELECT pg_catalog.pg_backend_pid()"

# PostgreSQL before 18.2 may answer 58P01 to every LISTEN, until this has been asked (guarantee 10).
_CURE = b"SELECT pg_catalog.pg_notification_queue_usage()"
_CURABLE = "58P01"


def now() -> datetime:
    return datetime.now(timezone.utc)


def quote(name: str) -> str:
    """A channel's name as a quoted identifier: exactly as given, and no SQL can be in it."""
    return '"' + name.replace('"', '""') + '"'


class Session:
    """A connection and the channels that the server was told to listen to.

    `heartbeat` is in seconds, or None. `drained` is `well` as it holds for what the last drain returned.
    """

    def __init__(self, source: DbConf, heartbeat: float | None, breaker: Breaker) -> None:
        """Connect. Raises `psycopg.Error`, and leaves nothing open then."""
        self._breaker = breaker
        self._heartbeat = heartbeat
        self.drained: datetime = now()
        self._known = self._clean = self.drained
        self._ahead = 0
        self._conn = connect(source, breaker)
        try:
            self.fileno: int = self._conn.fileno()
            self._inode = os.fstat(self.fileno).st_ino
            self._encrypted = self._conn.pgconn.ssl_in_use
            self.active: PMap[str, bool] = pmap()
            self._arrived: list[Any] = []  # and not yet drained
            self._asked: tuple[float, datetime] | None = None  # when the check that is under way was sent
            self._partial: list[Any] = []  # what has come of its answer
            self._heard = self._answered = monotonic()
            self.pid: int = int(self._ask(_CHECK)[-1].get_value(0, 0))
        except BaseException:
            self._conn.close()
            raise

    def listen(
        self, add: Collection[str], remove: Collection[str] = (), relieve: Callable[[], object] | None = None
    ) -> None:
        """Listen to `add` and no longer to `remove`, in one round trip.

        `relieve()` hands over some of what has arrived, where that is much.
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
            active.remove(name)
        self.active = active.persistent()

    def listen_where_allowed(
        self, add: Collection[str], remove: Collection[str] = (), relieve: Callable[[], object] | None = None
    ) -> dict[str, psycopg.Error]:
        """As `listen`, for all names that the server takes; returns those that it refused, each with its reason."""
        try:
            self.listen(add, remove, relieve)
        except REFUSALS as error:
            names = list(add)
            if len(names) == 1 and not remove:
                return {names[0]: error}
            half = len(names) // 2
            self.listen((), remove)
            return {**self.listen_where_allowed(names[:half]), **self.listen_where_allowed(names[half:])}
        return {}

    def verify(self) -> None:
        """Ask the server whether this session listens. Raises `CannotListen`, `psycopg.OperationalError`.

        A notification says so too; the answer, which may be late where they come fast, is left to `check` then.
        """
        limit = ANSWER_TIMEOUT if self._heartbeat is None else self._heartbeat
        moment = self._heard = monotonic()
        if self._asked is None:  # else it was asked before, and a notification came first
            self._asked = (moment, now())
            self._send(_CHECK)
        while self._asked is not None and not self._arrived:
            self._send()
            if not self._breaker.wait(moment + limit, self.fileno):
                raise psycopg.OperationalError(f"no answer from the server within {limit:g} seconds")
            self._arrived = self._drain()

    def prove(self, source: DbConf) -> None:
        """Behind a pooler, see that a notification from another connection is heard. Raises `CannotListen`.

        A pooler shows itself by another pid than the server process has. One that pools by transaction cannot be
        seen from this side alone: while it has a single client, that meets its own LISTEN again.
        """
        if self._conn.pgconn.backend_pid == self.pid:
            return
        channel = f"pgnotifier_{os.urandom(16).hex()}"
        self.listen([channel])
        limit = min(self._heartbeat or ANSWER_TIMEOUT, PROOF_TIME)
        deadline = monotonic() + limit
        other = connect(source, self._breaker, deadline)
        try:
            other.pgconn.send_query(_PID + f"; NOTIFY {channel}".encode())
            results = answer(other, self._breaker, deadline, limit)
            heard = int(results[0].get_value(0, 0)) != self.pid
            while heard and not any(n.channel == channel for n in self._arrived):
                heard = self._breaker.wait(deadline, self.fileno)
                self._arrived = self.drain()
        finally:
            other.close()
        if not heard:
            raise CannotListen(
                "a pooler in transaction mode is in between, in which notifications are lost: connect to PostgreSQL "
                "directly, or have the pooler pool by session (pool_mode=session)"
            )
        self.listen((), [channel])
        self._arrived = [n for n in self._arrived if n.channel != channel]

    @property
    def well(self) -> datetime:
        """The last moment before which nothing can have been missed, nor has arrived and was not drained.

        It is the sending of the last question that was answered: notifications and answers come in order.
        """
        return self._clean if self._arrived else self._known

    def drain(self) -> list[Any]:
        """All notifications that have arrived, in order; does not wait. Raises when the connection is lost.

        What had arrived by then is kept, for `leftover`.
        """
        self.drained, self._ahead = self.well, 0
        return self._drain()

    def arrived(self) -> list[Any]:
        """What was read with an answer and is not yet drained, without a look at the socket."""
        self.drained, self._clean = self.well, self._known
        return self.leftover()

    def read_on(self) -> None:
        """Read what has come, for the next drain, so that the server need not wait; as long as it is not too much."""
        if self._ahead < AHEAD:
            known = len(self._arrived)
            clean = self.well
            self._arrived = self._drain()
            self._clean = clean
            self._ahead += sum(OVERHEAD + len(n.payload) for n in self._arrived[known:])

    def _drain(self) -> list[Any]:
        batch, self._arrived = self._arrived, []
        try:
            batch += self._conn.notifies(timeout=0)
            if self._encrypted:
                # A decrypted rest can wait in the TLS layer while the socket is silent: twice is enough for a record.
                self._conn.pgconn.consume_input()
                self._take(batch)
                self._conn.pgconn.consume_input()
                self._take(batch)
            if self._asked is not None:
                self._hear(batch)
            elif not batch and self._conn.pgconn.status == pq.ConnStatus.BAD:
                raise psycopg.OperationalError("the connection was lost")
        except BaseException as error:
            self._take(batch)
            self._arrived = batch
            if isinstance(error, psycopg.Error):
                raise self._reason(error) from None
            raise
        self._clean = self._known
        return batch

    def put_back(self, rest: list[Any]) -> None:
        """Have `rest` of the last drain come first in the next one."""
        self._arrived = rest + self._arrived
        self._clean = self.drained

    def leftover(self) -> list[Any]:
        """What had arrived before the connection was lost, and was not drained."""
        rest, self._arrived = self._arrived, []
        return rest

    def check(self, heard: bool) -> float:
        """Ask the server where that is due; `heard` says whether bytes have come since the last call.

        Returns when (monotonic seconds) to come again. Raises `psycopg.OperationalError` where an answer is overdue.
        The question goes out every `heartbeat` seconds under traffic too, so that `well` stays recent; but only
        silence for `heartbeat` seconds counts against the connection.
        """
        if self._heartbeat is None:
            return inf
        moment = monotonic()
        if heard:
            self._heard = moment
        if self._asked is None:
            due = self._answered + self._heartbeat
            if moment < due:
                return due
            self._asked = (moment, now())
            self._send(_CHECK)
        self._send()
        overdue = max(self._asked[0], self._heard) + self._heartbeat
        if moment >= overdue:
            raise psycopg.OperationalError(f"no answer from the server within {self._heartbeat:g} seconds")
        return overdue

    def close(self) -> None:
        self._conn.close()

    def abandon(self) -> None:
        """In a forked child: close the child's handle; the server and the parent do not notice."""
        with contextlib.suppress(OSError):
            if os.fstat(self.fileno).st_ino == self._inode:  # the number may name another file by now
                os.close(self.fileno)

    def _take(self, into: list[Any]) -> None:
        pgconn = self._conn.pgconn
        with contextlib.suppress(psycopg.Error):  # closed
            while (n := pgconn.notifies()) is not None:
                into.append(psycopg.Notify(n.relname.decode(), n.extra.decode(), n.be_pid))

    def _ask(self, sql: bytes, relieve: Callable[[], object] | None = None) -> list[Any]:
        """Send a query and wait for its answer; what notifications come meanwhile are kept for the next drain."""
        limit = ANSWER_TIMEOUT if self._heartbeat is None else self._heartbeat
        deadline = monotonic() + limit

        def after_read() -> None:
            if relieve is not None:
                self._take(self._arrived)
                while len(self._arrived) >= MUCH and not self._breaker.broken:
                    relieve()

        try:
            if self._asked is not None:  # a check is under way: its answer comes first
                results = self._partial + answer(self._conn, self._breaker, deadline, limit, after_read)
                self._take(self._arrived)  # before what proves that they have come
                self._judge(results)
            sent = now()
            self._send(sql)
            results = answer(self._conn, self._breaker, deadline, limit, after_read)
            self._take(self._arrived)
            self._well(sent)
            return results
        except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege) as error:
            raise self._reason(error) from None
        finally:
            self._take(self._arrived)

    def _send(self, sql: bytes = b"") -> None:
        """Send `sql`, and what the socket did not take before."""
        try:
            if sql:
                self._conn.pgconn.send_query(sql)
            self._conn.pgconn.flush()
        except psycopg.OperationalError as error:
            raise self._reason(error) from None

    def _reason(self, error: psycopg.Error) -> psycopg.Error:
        """What to raise for `error`: with the server's own reason, or with what to do."""
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            return CannotListen(
                f"{error}; a standby cannot listen: connect to the primary, for example with "
                "target_session_attrs=read-write"
            )
        if isinstance(error, psycopg.errors.InsufficientPrivilege):  # LISTEN itself needs none
            user = quote((self._conn.pgconn.user or b"").decode(errors="replace"))
            return CannotListen(
                f"{error}; give it back: GRANT EXECUTE ON FUNCTION pg_catalog.pg_backend_pid(), "
                f"pg_catalog.pg_listening_channels(), pg_catalog.pg_notification_queue_usage() TO {user}"
            )
        if isinstance(error, psycopg.OperationalError):
            return lost(self._conn, error, self._partial)
        return error

    def _hear(self, batch: list[Any]) -> None:
        """Read as much of a check's answer as has come, and the notifications behind it."""
        pgconn = self._conn.pgconn
        while not pgconn.is_busy():
            result = pgconn.get_result()
            self._take(batch)
            if result is None:
                self._judge(checked(self._conn, self._partial))
                return
            self._partial.append(result)

    def _judge(self, results: list[Any]) -> None:
        """Compare a check's answer with what the session should be."""
        asked, self._asked, self._partial = self._asked, None, []
        if asked is not None:
            self._well(asked[1])
        pid, listening = (int(results[-1].get_value(0, column)) for column in (0, 1))
        if pid != self.pid or listening != len(self.active):
            raise CannotListen(
                f"the session listens to {listening} of {len(self.active)} channels (server process {pid}, at first "
                f"{self.pid}): a pooler in transaction mode, or an UNLISTEN; connect to PostgreSQL directly, or pool "
                "by session"
            )

    def _well(self, sent: datetime) -> None:
        self._known = sent - SIGNAL_TIME
        self._answered = monotonic()
