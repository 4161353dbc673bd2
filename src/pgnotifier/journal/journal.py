"""Journal: its tables, publishing, and its consumers (guarantee 18). Runs on the caller's thread, without a lock."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterator
from datetime import timedelta
from importlib.resources import files
from typing import Any, Literal, overload
from uuid import uuid4

import psycopg
from psycopg.rows import tuple_row
from psycopg.sql import SQL, Identifier
from psycopg.sql import Literal as Quoted

from ..aio import AsyncNotifier
from ..connection import CancelToken, payload_text
from ..errors import StreamClosed
from ..events import Notification
from ..notifier import Notifier
from ..types import Channels, DbConf
from ..validation import check_channel, check_channels, check_dbconf
from . import upkeep
from .aio import AsyncConsumer, consume_on_a_thread
from .arguments import check_age, check_consumer, loop_for
from .consumer import CHANNEL, Consumer
from .pool import Pool
from .rounds import OnEntry, OnError, OnGap, Order
from .seam import Seam
from .sessions import Session
from .slices import NOTHING, Entry, tail
from .work import Statement, statement

VERSION = 1  # of the tables
KEEP = timedelta(days=7)
SAME_DATABASE_SECONDS = 5.0  # for a notification to reach the notifier


class Journal:
    """Notifications that survive: entries published in a table, and consumers that get all of them.

    - `dbconf`: as of `Notifier`, for the journal's own connections.
    - `schema`: the schema of its tables.

    Every method may be called from any thread. `with` closes idle connections at the end of the block.
    """

    def __init__(self, dbconf: DbConf = "", schema: str = "pgnotifier") -> None:
        self._dbconf = check_dbconf(dbconf)
        self._schema: str = check_channel(schema)  # schemas have the same limits
        self._pool = Pool(self._dbconf, self._schema)

    def __repr__(self) -> str:
        return f"<journal in schema {self._schema!r}>"

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections. The journal can still be used."""
        self._pool.close()

    # -- the tables -----------------------------------------------------------------------------------------

    def sql(self, keep: timedelta | None = KEEP) -> str:
        """Return the SQL that `install` runs, to read it or to run it in a migration."""
        text = (files(__package__) / "journal.sql").read_text(encoding="utf-8")
        names = {
            "schema": Identifier(self._schema),
            "schema_text": Quoted(self._schema),
            "journal_text": Quoted(self._table),
            "version": Quoted(VERSION),
            "keep": Quoted(None if keep is None else check_age("keep", keep)),
        }
        quotes = "$$"  # of function bodies; the schema's name may hold them
        while quotes in self._schema:
            quotes = f"$j{quotes[1:]}"
        found = {"$$": quotes, **{f"{{{name}}}": value.as_string(None) for name, value in names.items()}}
        return re.sub(r"\$\$|\{\w+\}", lambda match: found[match[0]], text)

    def install(self, keep: timedelta | None = KEEP) -> None:
        """Make the tables and functions, or update them. It can be called again, by several processes at a time.

        `keep`: how long entries stay that every consumer has had; None keeps them for ever. The latest call sets it.
        Raises `psycopg.Error`; nothing has changed then.
        """
        sql = self.sql(keep)
        with Session(self._dbconf, CancelToken()) as session:
            assert isinstance(session.conn, psycopg.Connection)
            session.conn.execute(sql.encode())

    @overload
    def publish(self, channel: str, payload: object = "", conn: psycopg.Connection[Any] | None = None) -> int: ...
    @overload
    def publish(self, channel: str, payload: object, conn: psycopg.AsyncConnection[Any]) -> Awaitable[int]: ...
    def publish(self, channel: str, payload: object = "", conn: Any = None) -> int | Awaitable[int]:
        """Write an entry, of any size, and return its id. A str is written as it is, anything else through `encode`.

        With `conn` it is written in that connection's transaction, and exists if and when that commits. With an
        `AsyncConnection`, await the result. Without `conn` it is committed when this returns. Raises
        `InvalidChannel`, `TypeError`, `ValueError` and `psycopg.Error`; nothing is written then.
        """
        name, text = check_channel(channel), payload_text(payload)
        query = statement(self._schema, "select {s}.publish(%(name)s, %(text)s)", name=name, text=text)
        if isinstance(conn, psycopg.AsyncConnection):
            return _publish(conn, query)
        if conn is not None:
            with conn.cursor(row_factory=tuple_row) as cursor:
                return int(cursor.execute(*query).fetchone()[0])
        with self._pool.session() as session:
            return int(session.ask(query)[0][0])

    # -- consumers ------------------------------------------------------------------------------------------

    @overload
    def consume(
        self,
        notifier: Notifier,
        name: str,
        channels: Channels,
        fn: OnEntry,
        *,
        start: Literal["now", "beginning"] = "now",
        batch: int = 100,
        on_gap: OnGap | None = None,
        on_error: OnError = "retry",
    ) -> Consumer: ...
    @overload
    def consume(
        self,
        notifier: AsyncNotifier,
        name: str,
        channels: Channels,
        fn: OnEntry,
        *,
        start: Literal["now", "beginning"] = "now",
        batch: int = 100,
        on_gap: OnGap | None = None,
        on_error: OnError = "retry",
    ) -> Awaitable[AsyncConsumer]: ...
    def consume(
        self,
        notifier: Notifier | AsyncNotifier,
        name: str,
        channels: Channels,
        fn: OnEntry,
        *,
        start: Literal["now", "beginning"] = "now",
        batch: int = 100,
        on_gap: OnGap | None = None,
        on_error: OnError = "retry",
    ) -> Consumer | Awaitable[AsyncConsumer]:
        """Call `fn(entry, conn)` for every entry of `channels` that this name has not had, one at a time.

        When this returns, the position is stored: entries that commit later are delivered, also to a later process of
        this name. With an `AsyncNotifier`, await the result, an `AsyncConsumer`.

        - `fn`: runs on the consumer's thread; an `async def` on the event loop that runs here. `conn` is in the
          transaction that moves the position: what `fn` writes there happens exactly once, everything else at least
          once. `fn` must neither commit nor roll back.
        - `start`: a new name gets entries that commit from now on, or, with `"beginning"`, also those that exist.
        - `batch`: greatest number of entries in a transaction.
        - `on_gap(name, channel, gap)`: called for lost entries. The reason is `"trimmed"`, `"restored"` or
          `"channels"`.
        - `on_error`: `"retry"` tries an entry without limit, `"skip"` five times; `on_error(entry, error, tries)`
          returns True to skip it.

        One process of a name is active at a time. Raises `ValueError` for a notifier that is not connected to this
        database or has a consumer of that name, `TypeError` for bad arguments, and `psycopg.Error`.
        """
        names = sorted(set(check_channels(channels)), key=str.encode)
        if not names:
            raise ValueError("consume needs at least one channel")
        check_consumer(name, start, batch, on_error)
        loop = loop_for(fn, on_gap)
        order = Order(self._dbconf, self._schema, name, names, fn, on_gap, on_error, batch, loop)
        if isinstance(notifier, AsyncNotifier):
            return consume_on_a_thread(lambda: self._consume(Seam(notifier), order, start == "beginning"))
        return self._consume(Seam(notifier), order, start == "beginning")

    def _consume(self, seam: Seam, order: Order, beginning: bool) -> Consumer:
        with self._pool.session() as session:
            upkeep.prepare(session, self._schema)
            self._check_same_database(seam, session)
            upkeep.register(session, self._schema, order.name, order.channels, beginning)
        consumer = Consumer(seam, order)
        try:
            consumer.start()
        except BaseException:
            consumer.stop(0)
            raise
        return consumer

    @staticmethod
    def _check_same_database(seam: Seam, session: Session) -> None:
        """Raise `ValueError` unless the notifier hears notifications from this session."""
        token = uuid4().hex
        if not seam.notifier.is_running():
            raise ValueError("the notifier is stopped: start it before a consumer")
        with seam.listen(CHANNEL) as stream:
            assert isinstance(session.conn, psycopg.Connection)
            session.conn.execute(SQL("notify {}, {}").format(Identifier(CHANNEL), Quoted(token)))
            try:
                while True:
                    event = stream.get(SAME_DATABASE_SECONDS)
                    if isinstance(event, Notification) and event.payload == token:
                        return
            except (TimeoutError, StreamClosed):
                where = f"database {session.conn.info.dbname!r} at {session.conn.info.host}:{session.conn.info.port}"
                raise ValueError(f"the notifier must be connected to the journal's {where}") from None

    def tail(
        self, notifier: Notifier, channels: Channels, start: Literal["now", "beginning"] = "now"
    ) -> Iterator[Entry]:
        """Yield entries as they are committed, without storing a position. Payloads stay texts.

        Entries that are trimmed before they are read are left out. Ends with the notifier. Raises as `consume`.
        """
        seam, names, since = Seam(notifier), sorted(check_channels(channels)), NOTHING
        with self._pool.session() as session:
            self._check_same_database(seam, session)
            with seam.listen(CHANNEL) as stream:
                if start == "now":
                    since = session.ask(tail(self._schema, [], since))[0][0]
                for _ in stream:
                    while stream.poll() is not None:
                        pass
                    rows = session.ask(tail(self._schema, names, since))
                    since = rows[0][0]
                    yield from (Entry(*row[1:]) for row in rows if row[1] is not None)

    # -- upkeep ---------------------------------------------------------------------------------------------

    def trim(self, older_than: timedelta, evict: bool = False) -> int:
        """Delete entries older than `older_than` that every consumer has had; return how many.

        `evict=True` also deletes entries that a consumer has not had, and reports their number to it with a gap.
        """
        age = check_age("older_than", older_than)
        deleted = after = 0
        with self._pool.session() as session:
            upkeep.prepare(session, self._schema)
            while True:
                step = session.run(upkeep.trim(self._schema, age, after, evict), transaction=True)
                deleted += step.deleted
                after = step.after
                if not step.more:
                    return deleted

    def remove(self, name: str) -> bool:
        """Forget a retired consumer; return False if there was none. If it runs, it ends."""
        with self._pool.session() as session:
            return bool(session.ask(statement(self._schema, upkeep.REMOVE, name=name)))

    def status(self) -> dict[str, Any]:
        """Return the state of the journal and its consumers, as a plain dict.

        `version`, `keep` (a timedelta or None), `restored` (into another cluster), `entries`, `bytes`, `oldest` and
        `newest` (aware datetimes or None), `oldest_transaction` (None, or the one that has been open longest, with
        `pid`, `database`, `user`, `application_name`, `state` and `seconds`), and `consumers`: for each `name`,
        `channels`, `active`, `pid`, `lag` (entries), `lag_seconds` (since the oldest of them was written),
        `held` (entries older than `keep` that it has not had), `moved` (when its position last moved) and `gaps` (the
        reasons of gaps that wait for it).
        """
        with self._pool.session() as session:
            return session.run(upkeep.status(self._schema, self._table))

    @property
    def _table(self) -> str:
        return Identifier(self._schema, "journal").as_string(None)


async def _publish(conn: psycopg.AsyncConnection[Any], query: Statement) -> int:
    async with conn.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(*query)
        [(id,)] = await cursor.fetchall()
        return int(id)
