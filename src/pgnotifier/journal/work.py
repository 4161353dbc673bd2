"""Work for a connection: a generator of statements and of calls of user code.

The generator is sent the rows of a statement; a call gets the connection. So the statements and their order are
written once, for threads and for event loops.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import pq
from psycopg.sql import Identifier

T = TypeVar("T")

CONFLICTS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)  # tried again, not failures


class CallFailed(Exception):
    """User code has raised `error`, left the transaction failed, or ended it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Call(NamedTuple):
    """A call of user code: `function(*arguments, conn)`."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


Statement = tuple[bytes, dict[str, Any]]
Work = Generator[Statement | Call, Any, T]


def statement(schema: str, text: str, /, **parameters: Any) -> Statement:
    """Return `text` with the schema for `{s}`, and its parameters."""
    return _in_schema(schema, text), parameters


@lru_cache(maxsize=200)
def _in_schema(schema: str, text: str) -> bytes:
    return text.replace("{s}", Identifier(schema).as_string(None).replace("%", "%%")).encode()


def check(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], error: BaseException | None) -> None:
    """Raise `CallFailed` if a call has failed by itself; raise a lost connection and a conflict as they are."""
    status = conn.pgconn.transaction_status
    if error is None and status == pq.TransactionStatus.INTRANS:
        return
    if status == pq.TransactionStatus.UNKNOWN:
        raise psycopg.OperationalError("the connection was lost in a callback") from error
    if isinstance(error, CONFLICTS) and status == pq.TransactionStatus.INERROR:
        raise error
    if error is None and status == pq.TransactionStatus.INERROR:
        error = psycopg.errors.InFailedSqlTransaction("the callback has caught an error that aborts its transaction")
    elif error is None:
        error = psycopg.ProgrammingError("the callback has ended the transaction")
    raise CallFailed(error) from error
