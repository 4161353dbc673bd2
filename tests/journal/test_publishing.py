"""Publishing: by insert, by function, by a table's trigger; roles, names and paths that mean harm (guarantee 18)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conftest import until
from pgnotifier import InvalidChannel, Notifier
from pgnotifier.journal import Journal

from .reading import Reader, run

SCHEMAS = [
    "plain",
    'a"b',
    "a'b",
    "a b",
    "$$ or $q$",
    "{keep}{version}{schema}",
    "%s%(x)s%%",
    "a\\b",
    "A.B",
    "é" * 31,
    "x" * 63,
]
TRAPS = """
    create schema trap;
    create function trap.steal() returns void language plpgsql as $$ begin raise exception 'trapped'; end $$;
    create function trap.clock_timestamp() returns timestamptz language sql as 'select trap.steal(); select now()';
    create function trap.pg_visible_in_snapshot(xid8, pg_snapshot) returns boolean
        language sql as 'select trap.steal(); select false';
    create function trap.pg_current_snapshot() returns pg_snapshot
        language sql as 'select trap.steal(); select null::pg_snapshot';
    create function trap.pg_current_xact_id() returns xid8 language sql as 'select trap.steal(); select null::xid8';
    create function trap.octet_length(text) returns int language sql as 'select trap.steal(); select 1';
    create function trap.to_jsonb(anyelement) returns jsonb language sql as 'select trap.steal(); select null::jsonb';
    create function trap.unnest(text[]) returns setof text language sql as 'select trap.steal(); select null::text';
    create function trap.pg_notify(text, text) returns void language sql as 'select trap.steal()';
    create table trap.journal (channel text, payload text);
    create table trap.pg_index (a int);
    create table trap.pg_stat_activity (pid int)"""
OPERATORS = """
    create function trap.same(text, text) returns boolean language sql as 'select trap.steal(); select true';
    create function trap.same(bigint, bigint) returns boolean language sql as 'select trap.steal(); select true';
    create operator trap.= (function = trap.same, leftarg = text, rightarg = text);
    create operator trap.> (function = trap.same, leftarg = bigint, rightarg = bigint);
    create operator trap.<= (function = trap.same, leftarg = bigint, rightarg = bigint)"""


@pytest.fixture
def role(server: str, dsn: str) -> Iterator[str]:
    run(server, "create role publishing login")
    yield "publishing"
    run(dsn, "drop owned by publishing")
    run(server, "drop role publishing")


@pytest.fixture
def theirs(dsn: str, role: str) -> str:
    return make_conninfo(dsn, user=role)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_schemas_of_any_name(dsn: str, n: Notifier, reader: Reader, schema: str) -> None:
    """Everything works, and nothing is taken for SQL."""
    with Journal(dsn, schema) as journal:
        journal.install()
        journal.install(keep=None)
        run(dsn, "create table effect (place bigserial, id bigint primary key, payload text)")
        with journal.consume(n, "mailer", "orders", reader, on_gap=reader.on_gap):
            journal.publish("orders", 1)
            reader.has(1)
        journal.publish("orders", 2)
        assert journal.status()["consumers"][0]["lag"] == 1
        assert journal.trim(timedelta(0)) == 1
        assert journal.trim(timedelta(0), evict=True) == 1
        assert journal.remove("mailer")
        run(dsn, "create table t (id int primary key)")
        trigger = "create trigger j after insert on t for each row execute function {}.publish_changes('changes')"
        run(dsn, sql.SQL(trigger).format(sql.Identifier(schema)).as_string(None))
        run(dsn, "insert into t values (1)")
        assert journal.status()["entries"] == 1
    assert run(dsn, "select nspname from pg_namespace where nspname !~ '^(pg_|information_schema|public)'") == [
        (schema,)
    ]


@pytest.mark.parametrize(
    "traps",
    [
        pytest.param(TRAPS, id="functions"),
        pytest.param(f"{TRAPS}; {OPERATORS}", id="operators"),
    ],
)
def test_a_search_path_that_means_harm(
    journal: Journal, dsn: str, role: str, theirs: str, reader: Reader, make_notifier: Callable[..., Any], traps: str
) -> None:
    """Of the role that publishes, of the one that consumes, and of the owner."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(traps.encode())
        conn.execute(b"grant usage on schema trap to publishing")
        conn.execute(b"grant all on all tables in schema trap to publishing")
        conn.execute(f"alter database {conn.info.dbname} set search_path = trap, pg_catalog, public".encode())
        conn.execute(b"grant usage on schema pgnotifier to publishing")
        conn.execute(b"grant insert (channel, payload) on pgnotifier.journal to publishing")
    journal.close()
    journal.install()
    with journal.consume(make_notifier(), "mailer", ["orders", "changes"], reader, on_gap=reader.on_gap):
        assert isinstance(Journal(theirs).publish("orders", 1), int)
        run(theirs, "insert into pgnotifier.journal (channel, payload) values ('orders', '2')")
        run(dsn, "create table public.t (id int primary key)")
        run(dsn, "create trigger j after insert on public.t for each row "
            "execute function pgnotifier.publish_changes('changes')")  # fmt: skip
        run(dsn, "grant insert on public.t to publishing")
        run(theirs, "insert into public.t values (3)")
        until(lambda: len(reader.entries) == 3)
    assert reader.payloads[:2] == [1, 2]
    assert reader.payloads[2]["new"] == {"id": 3}
    journal.publish("orders", 4)
    assert journal.trim(timedelta(0), evict=True) == 4
    assert journal.status()["consumers"][0]["gaps"] == ["trimmed"]
    assert run(dsn, "select count(*) from trap.journal") == [(0,)]


def test_a_role_that_may_only_insert(journal: Journal, dsn: str, role: str, theirs: str) -> None:
    """It publishes, gets its ids, and can neither read nor forge anything."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        Journal(theirs).publish("orders", 0)
    run(dsn, "grant usage on schema pgnotifier to publishing")
    run(dsn, "grant insert (channel, payload) on pgnotifier.journal to publishing")
    publisher = Journal(theirs)
    with psycopg.connect(theirs) as conn:
        ids = [publisher.publish("orders", 1), publisher.publish("orders", 2, conn)]
        conn.execute(
            "insert into pgnotifier.journal (channel, payload) select 'orders', g::text from generate_series(3, 5) g"
        )
        ids.append(conn.execute("select pgnotifier.publish('orders', '6')").fetchall()[0][0])
    publisher.close()
    rows = run(dsn, "select id, payload from pgnotifier.journal order by id")
    assert [payload for _, payload in rows] == ["1", "2", "3", "4", "5", "6"]
    assert ids == [rows[0][0], rows[1][0], rows[5][0]]
    for forbidden in [
        "select * from pgnotifier.journal",
        "delete from pgnotifier.journal",
        "insert into pgnotifier.journal (channel, xid) values ('orders', '5')",
        "insert into pgnotifier.journal (channel, at) values ('orders', now())",
        "select * from pgnotifier.consumer",
        "update pgnotifier.lease set expires = now()",
        "create table t (); create trigger j after truncate on t execute function pgnotifier.publish_changes('x')",
        "select * from pgnotifier.slice('mailer', '1:1:', '9:9:', 0, 9, 9, 9)",
    ]:
        with pytest.raises(psycopg.errors.InsufficientPrivilege), psycopg.connect(theirs) as conn:
            conn.execute(forbidden.encode())


def test_a_role_that_consumes_is_no_superuser(
    journal: Journal, dsn: str, role: str, theirs: str, reader: Reader, make_notifier: Callable[..., Any]
) -> None:
    """With the grants that journal.sql names; its settings of how values look do not matter."""
    run(dsn, "grant usage on schema pgnotifier to publishing")
    run(dsn, "grant all on all tables in schema pgnotifier to publishing")
    run(dsn, "grant all on effect, effect_place_seq to publishing")
    for setting in [
        "intervalstyle = iso_8601",
        "datestyle = 'German'",
        "timezone = 'Asia/Kathmandu'",
        "default_transaction_isolation = serializable",
    ]:
        run(dsn, f"alter role publishing set {setting}")
    with Journal(theirs) as own, own.consume(make_notifier(theirs), "mailer", "orders", reader, on_gap=reader.on_gap):
        own.publish("orders", 1)
        reader.has(1)
        assert reader.entries[0].at.tzinfo is not None
        until(lambda: own.status()["consumers"][0]["lag"] == 0)
        assert own.trim(timedelta(0)) == 1
        assert own.status()["keep"] == timedelta(days=7)


@pytest.mark.parametrize("size", [0, 1, 7_999, 8_000, 8_001, 10_000_000])
@pytest.mark.parametrize("kind", ["text", "json", "escapes"])
def test_payloads_of_any_size(journal: Journal, dsn: str, n: Notifier, size: int, kind: str) -> None:
    """A text comes as it was; a document is decoded."""
    value: Any = {
        "text": "x" * size,
        "json": {"a": ["é"] * (size // 6), "n": None},
        "escapes": {"\\/'\"\n": "\u2028" * size},
    }[kind]
    got: list[Any] = []
    with journal.consume(n, "mailer", "orders", lambda entry, conn: got.append(entry.payload)):
        journal.publish("orders", value)
        journal.publish("orders", "end")
        until(lambda: len(got) == 2, 60)
    assert got == [value, "end"]


def test_what_is_published_in_a_transaction(
    journal: Journal, dsn: str, n: Notifier, reader: Reader, consume: Any
) -> None:
    """It exists when and only when that commits; bulk inserts and COPY publish too."""
    consume()
    with psycopg.connect(dsn) as conn:
        journal.publish("orders", "gone", conn)
        conn.rollback()
        journal.publish("orders", 1, conn)
        with conn.cursor() as cursor, cursor.copy("copy pgnotifier.journal (channel, payload) from stdin") as copy:
            copy.write_row(["orders", "2"])
            copy.write_row(["others", "no"])
            copy.write_row(["orders", "3"])
        assert reader.entries == []
    reader.has(1, 2, 3)
    with psycopg.connect(dsn) as conn:
        journal.publish("orders", 4, conn)
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            conn.execute("prepare transaction 'x'")


@pytest.mark.parametrize("channel", ["", "a\0b", "x" * 64, "é" * 32, 5])
def test_channels_that_are_refused(journal: Journal, dsn: str, channel: Any) -> None:
    with pytest.raises((InvalidChannel, TypeError)):
        journal.publish(channel, "")
    if isinstance(channel, str) and "\0" not in channel:
        with pytest.raises(psycopg.errors.CheckViolation):
            run(dsn, "insert into pgnotifier.journal (channel, payload) values (%s, '')", channel)


TABLES = {
    "plain": ("t", "(id int primary key, a text)", {"id": 1}),
    "composite": ("t", "(a text, id int, b int default 7, primary key (id, b))", {"id": 1, "b": 7}),
    "no key": ("t", "(id int, a text)", None),
    "included": ("t", "(id int, a text, primary key (id) include (a))", {"id": 1}),
    "mixed case": ('"Ta ble"', '(id int, a text, "K ey" int generated always as identity primary key)', {"K ey": 1}),
    "partitioned": ("t", "(id int, a text, primary key (id)) partition by range (id)", {"id": 1}),
    "dropped column": ("t", "(gone int, id int primary key, a text)", {"id": 1}),
}


@pytest.mark.parametrize("kind", list(TABLES))
def test_changes_of_tables(journal: Journal, dsn: str, role: str, theirs: str, kind: str) -> None:
    """Insert, update, delete and truncate, by a role without any right on the journal."""
    name, columns, key = TABLES[kind]
    run(dsn, f"create table {name} {columns}")
    if kind == "partitioned":
        run(dsn, f"create table part partition of {name} for values from (0) to (10)")
    if kind == "dropped column":
        run(dsn, "alter table t drop column gone")
    body = "execute function pgnotifier.publish_changes('changes')"
    run(dsn, f"create trigger rows after insert or update or delete on {name} for each row {body}")
    run(dsn, f"create trigger emptied after truncate on {name} for each statement {body}")
    run(dsn, f"grant all on {name} to publishing")
    long = "é" * 20_000
    for statement in [
        f"insert into {name} (id, a) values (1, 'x')",
        f"update {name} set a = '{long}'",
        f"delete from {name}",
        f"truncate {name}",
    ]:
        run(theirs, statement)
    rows = run(dsn, "select channel, payload from pgnotifier.journal order by id")
    assert {channel for channel, _ in rows} == {"changes"}
    insert, update, delete, truncate = (json.loads(payload) for _, payload in rows)
    table = "part" if kind == "partitioned" else name.strip('"')
    for event, op in [(insert, "INSERT"), (update, "UPDATE"), (delete, "DELETE")]:
        assert (event["op"], event["schema"], event["table"], event["key"]) == (op, "public", table, key)
    assert (insert["old"], insert["new"]["a"]) == (None, "x")
    assert (update["old"]["a"], update["new"]["a"]) == ("x", long)
    assert (delete["old"]["a"], delete["new"]) == (long, None)
    assert truncate == {
        "op": "TRUNCATE",
        "schema": "public",
        "table": name.strip('"'),
        "key": None,
        "old": None,
        "new": None,
    }


@pytest.mark.parametrize(
    "trigger",
    [
        "before insert on t for each row execute function pgnotifier.publish_changes('x')",
        "after insert on t for each statement execute function pgnotifier.publish_changes('x')",
        "after insert on t for each row execute function pgnotifier.publish_changes()",
        "after insert on t for each row execute function pgnotifier.publish_changes('x', 'y')",
    ],
)
def test_triggers_that_are_refused(journal: Journal, dsn: str, trigger: str) -> None:
    run(dsn, "create table t (id int)")
    run(dsn, f"create trigger j {trigger}")
    with pytest.raises(psycopg.errors.RaiseException, match="publish_changes is for triggers"):
        run(dsn, "insert into t values (1)")
