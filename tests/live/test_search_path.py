"""No schema of a `search_path` has its functions run, and what a role may not run is said (guarantees 10 and 12)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conftest import until
from pgnotifier import CannotListen, Notifier
from pooler import Pooler

Conn = psycopg.Connection[Any]

# Each does what its namesake does, and is noted.
SHADOWS = """
create schema {role};
create table {role}.ran (name text);
create function {role}.pg_backend_pid() returns int language sql as
    $$ insert into {role}.ran values ('pg_backend_pid'); select pg_catalog.pg_backend_pid() $$;
create function {role}.pg_listening_channels() returns setof text language sql as
    $$ insert into {role}.ran values ('pg_listening_channels'); select pg_catalog.pg_listening_channels() $$;
create function {role}.pg_notification_queue_usage() returns float language sql as
    $$ insert into {role}.ran values ('pg_notification_queue_usage'); select 0.0::float $$;
create function {role}.pg_notify(text, text) returns void language sql as
    $$ insert into {role}.ran values ('pg_notify'); select pg_catalog.pg_notify($1, $2) $$;
create function {role}.counted(bigint) returns bigint language sql as
    $$ insert into {role}.ran values ('count'); select $1 operator(pg_catalog.+) 1 $$;
create aggregate {role}.count(*) (sfunc = {role}.counted, stype = bigint, initcond = '0');
create role {role} login;
grant usage on schema {role} to {role};
grant insert on {role}.ran to {role};
alter role {role} set search_path = {role}, pg_catalog;
"""


@pytest.fixture
def role(sender: Conn) -> Iterator[str]:
    """A role whose search_path begins with a schema that shadows what the library calls."""
    role = f"r_{uuid.uuid4().hex[:12]}"
    name = sql.Identifier(role)
    sender.execute(sql.SQL(SHADOWS).format(role=name))
    try:
        yield role
    finally:
        sender.execute(sql.SQL("drop owned by {0} cascade; drop schema {0} cascade; drop role {0}").format(name))


def ran(sender: Conn, role: str) -> list[tuple[Any, ...]]:
    return sender.execute(sql.SQL("select distinct name from {}.ran").format(sql.Identifier(role))).fetchall()


def test_the_shadows_would_be_run(server: str, sender: Conn, role: str) -> None:
    """Else the other tests say nothing."""
    with psycopg.connect(server, user=role, autocommit=True) as conn:
        conn.execute("select pg_backend_pid(), pg_notify('a', ''), pg_notification_queue_usage()")
        conn.execute("listen a")
        conn.execute("select count(*) from pg_listening_channels()")
    assert len(ran(sender, role)) == 5


def test_a_search_path_makes_nothing_run(server: str, sender: Conn, role: str, channel: str) -> None:
    """Guarantee 12: construction, a subscription, a notification, heartbeats, a reconnection."""
    got: list[Any] = []
    with Notifier(make_conninfo(server, user=role), heartbeat=0.1, retry_delay=(0.01, 0.1)) as n:
        n.subscribe(1, channel, lambda id, channel, payload, pid: got.append(payload))
        n.notify(channel, 1)
        until(lambda: got == [1])
        first = n.status()["pid"]
        text = "select query_start from pg_stat_activity where pid = %s and query ~ 'listening_channels'"
        seen: set[Any] = set()
        until(lambda: (seen.update(sender.execute(text, (first,)).fetchall()), len(seen) > 2)[1])  # heartbeats
        sender.execute("select pg_terminate_backend(%s)", (first,))
        until(lambda: n.status()["reconnects"] == 1)
        n.notify(channel, 2)
        until(lambda: got == [1, 2])
    assert ran(sender, role) == []


def test_behind_a_pooler(server: str, sender: Conn, role: str) -> None:
    """Guarantee 12: what finds out how it pools, too."""
    pooler = Pooler(make_conninfo(server, user=role), session=True)
    try:
        since = time.monotonic()
        with Notifier(pooler.dsn) as n:
            assert n.status()["connected"]
        assert time.monotonic() - since < 1.5  # the proof ends as soon as it is had
    finally:
        pooler.close()
    assert ran(sender, role) == []


@pytest.fixture
def revoked(sender: Conn) -> Iterator[str]:
    """A role that has nothing but what everyone has; a database in which a test takes some of that away."""
    name = f"r_{uuid.uuid4().hex[:12]}"
    sender.execute(sql.SQL("create role {} login").format(sql.Identifier(name)))
    sender.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        yield name
    finally:
        sender.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
        sender.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("function", ["pg_listening_channels()", "pg_backend_pid()"])
def test_execute_is_revoked(server: str, revoked: str, function: str) -> None:
    """Guarantee 10: it says which GRANT is missing; with it, all is well."""
    dsn = make_conninfo(server, user=revoked, dbname=revoked)
    with psycopg.connect(server, dbname=revoked, autocommit=True) as conn:
        conn.execute(f"revoke execute on function pg_catalog.{function} from public".encode())
        with pytest.raises(CannotListen, match="GRANT EXECUTE ON FUNCTION") as caught:
            Notifier(dsn)
        assert function.removesuffix("()") in str(caught.value).partition(";")[0]
        conn.execute(str(caught.value).partition(": ")[2].encode())
        with Notifier(dsn) as n:
            assert n.is_running()


def test_execute_is_revoked_later(server: str, revoked: str) -> None:
    """Guarantee 10: a lost connection then, whose reason says the same; it is back after the GRANT."""
    dsn = make_conninfo(server, user=revoked, dbname=revoked)
    with (
        psycopg.connect(server, dbname=revoked, autocommit=True) as conn,
        Notifier(dsn, heartbeat=0.1, retry_delay=(0.01, 0.1)) as n,
    ):
        conn.execute("revoke execute on function pg_catalog.pg_listening_channels() from public")
        until(lambda: "GRANT EXECUTE" in (n.status()["last_error"] or ""))
        assert n.is_running()
        conn.execute("grant execute on function pg_catalog.pg_listening_channels() to public")
        until(lambda: n.status()["connected"])
