"""One connection on which queries and notifications alternate: send, wait for the answer, read, keep what arrived.

One listener thread at a time touches it, without a lock. Any thread can end a wait, with the cancel token.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq

from ..clock import now
from ..errors import CannotListen
from .connect import connect, name_of
from .waiting import CancelToken, answer, checked, lost

if TYPE_CHECKING:
    from ..types import DbConf

ANSWER_SECONDS = 10.0  # for the server to answer a change of channels, without a heartbeat (guarantee 10)
MANY = 10_000  # notifications that may wait for the answer to a change; more are handed over before it
BACKLOG_BYTES = 16_000_000  # of notifications, about, that are read while mailboxes are full
BURST = 50  # notifications in the 16 kB that libpq reads at a time, after which more are likely to wait
AT_ONCE = 1_000  # notifications, about, that are read before they are handed over
OVERHEAD_BYTES = 100  # of each, about, without its payload

# A notifying process signals the listeners just after its commit, so `confirmed` is this much before the query.
SIGNAL_TIME = timedelta(milliseconds=250)


def quote(name: str) -> str:
    """Return a channel's name as a quoted identifier, exactly as given; no SQL can be in it."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(slots=True)
class Batch:
    """Notifications that were read together. Everything committed before `since` had been read before them."""

    notifications: list[Any]
    since: datetime


class Exchange(ABC):
    """A connection with a `backlog`: what arrived and was not handed over. `heartbeat`: seconds, None for never."""

    def __init__(self, source: DbConf, heartbeat: float | None, token: CancelToken) -> None:
        """Connect. Raises `psycopg.Error`, and leaves nothing open then."""
        self._token, self._heartbeat = token, heartbeat
        self._limit = ANSWER_SECONDS if heartbeat is None else heartbeat
        self.backlog: deque[Batch] = deque()
        self._backlog_bytes = 0
        self._confirmed = now()
        self._asked: tuple[float, datetime] | None = None  # when the check that is under way was sent
        self._partial: list[Any] = []  # results of its answer so far
        self._answered = monotonic()
        self._conn = connect(source, token)
        try:
            self.fileno: int = self._conn.fileno()
            self._inode = os.fstat(self.fileno).st_ino
            self._encrypted = self._conn.pgconn.ssl_in_use
            self.server: str = name_of(self._conn.pgconn)
        except BaseException:
            self._conn.close()
            raise

    @abstractmethod
    def _judge(self, results: list[Any]) -> None:
        """Compare the answer to a check with the session. Raises `CannotListen` if they differ."""

    @property
    def confirmed(self) -> datetime:
        """The time before which every commit has arrived and was handed over. Any thread.

        It is when the last answered query was sent, because notifications and answers come in order.
        """
        try:
            return self.backlog[0].since
        except IndexError:
            return self._confirmed

    @property
    def has_room(self) -> bool:
        """True if the backlog may still grow while mailboxes are full."""
        return self._backlog_bytes < BACKLOG_BYTES

    @property
    def has_more(self) -> bool:
        """True if there is something to read or hand over before the socket is readable again."""
        return bool(self.backlog) or self._encrypted

    def read(self) -> bool:
        """Add all that has arrived to the backlog, without waiting; return True if there was anything.

        Raises `psycopg.Error` if the connection is lost. What had arrived is in the backlog then, too.
        """
        batch: list[Any] = []
        since, before = self._confirmed, len(self.backlog)
        try:
            size = -BURST
            while size + BURST <= len(batch) < AT_ONCE:  # read on in a burst: larger batches cost less for each
                size = len(batch)
                batch += self._conn.notifies(timeout=0)
            if self._encrypted:
                # A decrypted rest can wait in the TLS layer while the socket is silent: twice is enough for a record.
                self._conn.pgconn.consume_input()
                self._take(batch)
                self._conn.pgconn.consume_input()
                self._take(batch)
            if self._asked is not None:
                self._hear(batch, since)
            elif self._conn.pgconn.status == pq.ConnStatus.BAD:
                raise psycopg.OperationalError("the connection was lost")
        except BaseException as error:
            self._take(batch)
            if isinstance(error, psycopg.Error):
                raise self._reason(error) from None
            raise
        finally:
            self._keep(batch, since)
        return len(self.backlog) > before

    def handed_over(self, count: int) -> None:
        """Remove the first `count` notifications of the oldest batch from the backlog."""
        batch = self.backlog[0]
        if count < len(batch.notifications):
            batch.notifications = batch.notifications[count:]  # a copy: runs keep the list
            return
        self.backlog.popleft()
        if not self.backlog:
            self._backlog_bytes = 0

    def _keep(self, batch: list[Any], since: datetime) -> None:
        if batch:
            if self.backlog:
                self._backlog_bytes += sum(OVERHEAD_BYTES + len(n.payload) for n in batch)
            self.backlog.append(Batch(batch, since))

    def _take(self, into: list[Any]) -> None:
        pgconn = self._conn.pgconn
        with contextlib.suppress(psycopg.Error):  # closed
            while (n := pgconn.notifies()) is not None:
                into.append(psycopg.Notify(n.relname.decode(), n.extra.decode(), n.be_pid))

    # -- queries ---------------------------------------------------------------------------------------------

    def _ask(self, sql: bytes, hand_over: Callable[[], float] | None = None) -> list[Any]:
        """Send a query and wait for its answer; add notifications that come meanwhile to the backlog."""
        deadline, arrived = monotonic() + self._limit, list[Any]()

        def keep() -> None:
            self._take(arrived)
            self._keep(list(arrived), self._confirmed)
            arrived.clear()

        def after_read() -> None:
            self._take(arrived)
            if hand_over is not None and len(arrived) >= MANY:
                keep()
                while (seconds := hand_over()) and not self.has_room:
                    self._token.wait(monotonic() + seconds)

        try:
            if self._asked is not None:  # a check is under way: its answer comes first
                results = self._partial + answer(self._conn, self._token, deadline, self._limit, after_read)
                keep()  # before the answer, which proves that they have come
                self._judge(results)
            sent = now()
            self._send(sql)
            results = answer(self._conn, self._token, deadline, self._limit, after_read)
            keep()
            self._confirm(sent)
            return results
        except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InsufficientPrivilege) as error:
            raise self._reason(error) from None
        finally:
            keep()

    def _send(self, sql: bytes = b"") -> None:
        """Send `sql`, and the rest that the socket did not take before."""
        try:
            if sql:
                self._conn.pgconn.send_query(sql)
            self._conn.pgconn.flush()
        except psycopg.OperationalError as error:
            raise self._reason(error) from None

    def _reason(self, error: psycopg.Error) -> psycopg.Error:
        """Return the error to raise for `error`: with the server's own reason, or with advice."""
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

    def _hear(self, batch: list[Any], since: datetime) -> None:
        """Read as much of a check's answer as has come, and the notifications behind it."""
        pgconn = self._conn.pgconn
        while not pgconn.is_busy():
            result = pgconn.get_result()
            self._take(batch)
            if result is None:
                self._keep(batch[:], since)  # before the answer, which proves that they have come
                batch.clear()
                self._judge(checked(self._conn, self._partial))
                return
            self._partial.append(result)

    def _confirm(self, sent: datetime) -> None:
        self._confirmed = sent - SIGNAL_TIME
        self._answered = monotonic()

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        self._conn.close()

    def abandon(self) -> None:
        """Close a forked child's handle; the server and the parent don't notice."""
        with contextlib.suppress(OSError):
            if os.fstat(self.fileno).st_ino == self._inode:  # the number may name another file by now
                os.close(self.fileno)
