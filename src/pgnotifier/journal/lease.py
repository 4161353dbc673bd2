"""The lease: the process that holds it is the active one of its consumer name (guarantee 18).

A separate connection renews it.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from uuid import uuid4

import psycopg

from .. import threads
from ..connection import CancelToken
from ..log import WARNING, describe, log
from ..types import DbConf
from .sessions import Session
from .work import statement

SECONDS = 6.0  # of a lease, by the server's clock
RENEW = 2.0  # seconds between two renewals
POLL = 1.0  # seconds between two attempts of a process that waits

# Takes a lease that has expired or is this holder's, and returns the session that had it, unless that has given it
# back. A lease that ends too far ahead counts as expired: the server's clock has been set back.
TAKE = """
    with taken as (
        insert into {s}.lease (consumer, holder, pid, began, expires)
        select %(name)s, %(holder)s::uuid, pid, backend_start,
            pg_catalog.clock_timestamp() + %(seconds)s * interval '1 second'
        from pg_catalog.pg_stat_activity where pid = pg_catalog.pg_backend_pid()
        on conflict (consumer) do update
        set holder = excluded.holder, pid = excluded.pid, began = excluded.began, expires = excluded.expires
        where lease.holder = excluded.holder or not lease.expires between pg_catalog.clock_timestamp()
            and pg_catalog.clock_timestamp() + %(seconds)s * interval '2 seconds'
        returning 1)
    select l.pid, l.began from taken left join {s}.lease l on l.consumer = %(name)s and l.expires > '-infinity'"""

# The session of a frozen process, or of a host that has vanished, may have locked the position.
END = """
    select pg_catalog.pg_terminate_backend(pid, 3000) from pg_catalog.pg_stat_activity
    where pid = %(pid)s and backend_start = %(began)s and pid <> pg_catalog.pg_backend_pid()"""

EXTEND = """
    update {s}.lease set expires = pg_catalog.clock_timestamp() + %(seconds)s * interval '1 second'
    where consumer = %(name)s and holder = %(holder)s::uuid returning 1"""

GIVE_BACK = """
    update {s}.lease set expires = '-infinity' where consumer = %(name)s and holder = %(holder)s::uuid returning 1"""


class Lease:
    """The lease of one consumer in one process. The consumer's thread takes it, a second thread renews it."""

    def __init__(self, dbconf: DbConf, token: CancelToken, schema: str, name: str) -> None:
        self._dbconf, self._token, self._schema, self._name = dbconf, token, schema, name
        self.holder: str = str(uuid4())
        self.is_held: bool = False  # as far as this process knows
        self._renewer: threading.Thread | None = None
        self._session: Session | None = None  # the renewer's
        self._end: SimpleQueue[None] = SimpleQueue()  # unlike an Event, it may be used in signal handlers

    def take(self, session: Session) -> bool:
        """Take the lease if it is free, end the session that had it, and begin to renew it; return True if it was."""
        parameters = {"name": self._name, "holder": self.holder, "seconds": SECONDS}
        rows = session.ask(statement(self._schema, TAKE, **parameters))
        if not rows:
            return False
        pid, began = rows[0]
        if pid is not None:
            with suppress(psycopg.errors.InsufficientPrivilege):  # of another role: the position's lock decides
                session.ask(statement(self._schema, END, pid=pid, began=began))
        self._end = SimpleQueue()
        self.is_held = True
        self._renewer = threading.Thread(target=self._renew, name=f"pgnotifier-lease-{self._name}", daemon=True)
        threads.start(self._renewer)
        return True

    def give_back(self, session: Session) -> None:
        """Free the lease for another process at once."""
        self.stop_renewing()
        if not session.is_broken:
            session.ask(statement(self._schema, GIVE_BACK, name=self._name, holder=self.holder))

    def stop_renewing(self) -> None:
        self._end.put(None)
        renewer, self._renewer = self._renewer, None
        threads.join(renewer, RENEW / 2)
        session = self._session
        if session is not None:  # the server does not answer it
            session.interrupt()
            threads.join(renewer, RENEW / 2)

    def _renew(self) -> None:
        """Renew the lease until another process has it. On a thread of its own."""
        end = self._end
        query = statement(self._schema, EXTEND, name=self._name, holder=self.holder, seconds=SECONDS)
        while not self._token.cancelled:
            try:
                with Session(self._dbconf, self._token) as self._session:
                    while self._session.ask(query):
                        with suppress(Empty):
                            end.get(timeout=RENEW)
                            return
                    self.is_held = False
                    return
            except Exception as error:
                if not self._token.cancelled:
                    log(WARNING, "cannot renew the lease of consumer %r: %s", self._name, describe(error))
            finally:
                self._session = None
            with suppress(Empty):
                end.get(timeout=RENEW / 2)
                return
