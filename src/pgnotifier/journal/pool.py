"""The connections on which a journal publishes, registers and reads: a few idle ones are kept for the next call."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from .. import lifecycle
from ..connection import CancelToken, ended
from ..types import DbConf
from .sessions import Session

MAX_IDLE = 4
MISSING = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.InvalidSchemaName)


class Pool:
    """Keeps idle sessions. Any thread; no lock."""

    def __init__(self, dbconf: DbConf, schema: str) -> None:
        self._dbconf, self._schema = dbconf, schema
        self._idle: deque[Session] = deque()
        lifecycle.watch_forks(self)

    def _forked(self) -> None:
        """Forget the parent's connections in a forked child. psycopg leaves them open."""
        self._idle = deque()

    def close(self) -> None:
        """Close idle connections."""
        while (session := self._pop()) is not None:
            session.close()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend an idle session or a new one; keep it if the work succeeds. Explains missing tables."""
        session = self._take() or Session(self._dbconf, CancelToken())
        try:
            yield session
        except MISSING as error:
            session.close()
            text = f"no journal in schema {self._schema!r}: call install(), or run pgnotifier journal install"
            raise type(error)(text) from error
        except BaseException:
            session.close()
            raise
        if len(self._idle) < MAX_IDLE and not session.is_broken:
            self._idle.append(session)
        else:
            session.close()

    def _take(self) -> Session | None:
        """Return an idle session that the server has not ended, or None."""
        while (session := self._pop()) is not None:
            assert isinstance(session.conn, psycopg.Connection)
            if not ended(session.conn):
                return session
            session.close()
        return None

    def _pop(self) -> Session | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None
