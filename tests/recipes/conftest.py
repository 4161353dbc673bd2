"""A database for each test, which can be made unreachable."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from conftest import until

Connection = psycopg.Connection[Any]


class Database:
    """`dsn` to connect to it, `sender` a session in it that survives everything."""

    def __init__(self, dsn: str, name: str, admin: Connection, sender: Connection) -> None:
        self.dsn, self.name, self.admin, self.sender = dsn, name, admin, sender

    def execute(self, query: str, values: Any = None) -> list[tuple[Any, ...]]:
        cursor = self.sender.execute(query, values)
        return cursor.fetchall() if cursor.description else []

    def listeners(self) -> list[int]:
        """The pids of the sessions that were last seen to listen."""
        return [
            pid
            for (pid,) in self.admin.execute(
                "select pid from pg_stat_activity where datname = %s and application_name = 'pgnotifier'", [self.name]
            ).fetchall()
        ]

    def terminate(self, application: str = "%") -> int:
        """End all sessions (of that application) but the sender's, wait until they are gone; how many there were."""
        ended = self.admin.execute(
            "select pid, pg_terminate_backend(pid) from pg_stat_activity where datname = %s and pid <> %s"
            " and application_name like %s and backend_type = 'client backend'",
            [self.name, self.sender.info.backend_pid, application],
        ).fetchall()
        pids = [pid for pid, _ in ended]
        gone = "select count(*) from pg_stat_activity where pid = any(%s)"
        until(lambda: self.admin.execute(gone, [pids]).fetchone() == (0,))
        return len(pids)

    @contextmanager
    def unreachable(self, application: str = "%") -> Iterator[None]:
        """Until the end of the block nobody can connect; the sessions (of that application) are ended."""
        self.admin.execute(f"alter database {self.name} allow_connections false")
        try:
            while self.terminate(application):
                pass
            yield
        finally:
            self.admin.execute(f"alter database {self.name} allow_connections true")

    @contextmanager
    def frozen(self, pid: int) -> Iterator[None]:
        """Until the end of the block that server process answers nothing."""
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def database(server: str) -> Iterator[Database]:
    name = f"recipe_{uuid.uuid4().hex[:12]}"
    dsn = make_conninfo(server, dbname=name)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"create database {name}")
        try:
            with psycopg.connect(dsn, autocommit=True) as sender:
                yield Database(dsn, name, admin, sender)
        finally:
            admin.execute(f"drop database {name} with (force)")
