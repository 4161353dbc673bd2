"""docs/recipes/trigger.md: guarantees 4, 7 and 14 with what the trigger of `pgnotifier trigger` sends."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier
from pgnotifier.cli.doctor.functions import functions
from pgnotifier.cli.trigger import trigger_sql

from .page import RECIPES, blocks, load, process, write

SQL = blocks("trigger.md")
ROW = "id int primary key, item text, price numeric(10, 2)"


class Heard:
    """What was notified on a channel, up to a mark."""

    def __init__(self, database: Any, notifier: Notifier, channel: str) -> None:
        self.database, self.channel, self.payloads = database, channel, list[Any]()
        notifier.subscribe(self, channel, lambda id, channel, payload, pid: self.payloads.append(payload))

    def all(self) -> list[Any]:
        self.database.execute("select pg_notify(%s, 'mark')", [self.channel])
        until(lambda: "mark" in self.payloads)
        payloads, self.payloads = self.payloads, []
        return payloads[:-1]


@pytest.fixture
def notifier(database: Any) -> Iterator[Notifier]:
    with Notifier(database.dsn) as notifier:
        yield notifier


@pytest.fixture
def heard(database: Any, notifier: Notifier) -> Heard:
    database.execute(f"create table orders ({ROW})")
    database.execute(trigger_sql("orders"))
    return Heard(database, notifier, "orders")


def test_the_row_with_operation_and_table(database: Any, heard: Heard) -> None:
    """Guarantee 7: JSON arrives as a dict; an update that changes nothing is not told."""
    database.execute("insert into orders values (1, 'tea', 4.10)")
    database.execute("update orders set item = 'tea'")
    database.execute("update orders set item = 'Tee'")
    database.execute("delete from orders")
    database.execute("truncate orders")
    changes = heard.all()
    times = [datetime.fromisoformat(change.pop("at")) for change in changes]
    assert times == sorted(set(times))
    assert abs(times[-1] - datetime.now(timezone.utc)) < timedelta(minutes=1)
    table = {"schema": "public", "table": "orders"}
    assert changes.pop() == {"op": "TRUNCATE", **table}
    assert changes == [
        {"op": op, **table, "key": {"id": 1}, "row": {"id": 1, "item": item, "price": 4.1}}
        for op, item in (("INSERT", "tea"), ("UPDATE", "Tee"), ("DELETE", "Tee"))
    ]


def test_the_payload_that_the_page_shows(database: Any, heard: Heard) -> None:
    database.execute("insert into orders values (1, 'tea', 4.10)")
    [change] = heard.all()
    shown = re.search(r"^```json\n(.*)\n```$", (RECIPES / "trigger.md").read_text(), re.MULTILINE)
    assert shown
    assert {**json.loads(shown[1]), "at": change["at"]} == change


def test_a_changed_key_and_no_key(database: Any, heard: Heard, notifier: Notifier) -> None:
    database.execute("insert into orders values (1, 'tea', 4)")
    database.execute("update orders set id = 2")
    database.execute("alter table orders rename id to number")
    database.execute("update orders set number = 3")
    database.execute("alter table orders drop constraint orders_pkey")
    database.execute("update orders set item = 'rum'")
    database.execute("alter table orders add primary key (item, price)")
    database.execute("update orders set price = 5")
    keys = [(change["key"], change.get("old_key")) for change in heard.all()]
    assert keys == [
        ({"id": 1}, None),
        ({"id": 2}, {"id": 1}),
        ({"number": 3}, {"number": 2}),
        (None, None),
        ({"item": "rum", "price": 5}, {"item": "rum", "price": 4}),
    ]


def test_the_key_only_where_the_message_is_too_long_in_bytes(
    database: Any, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 12: 7,999 bytes go; one more is left out, and the row is read again."""
    database.execute("insert into orders values (1, '', 0.25)")
    [change] = heard.all()
    fits = 7999 - len(json.dumps(change))  # which has the same separators as jsonb
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    row_after = load("trigger.md", "orders.py")["row_after"]
    for text, sent in (("x" * fits, True), ("x" * (fits + 1), False), ("é" * (fits // 2 + 1), False)):
        database.execute("update orders set item = %s", [text])
        [change] = heard.all()
        assert change["key"] == {"id": 1}
        assert ("row" in change) is sent
        assert row_after(change) == {"id": 1, "item": text, "price": 0.25}
    database.execute("delete from orders")
    assert row_after(change) is None  # gone since
    [change] = heard.all()
    assert "row" not in change
    assert row_after(change) is None


def test_equal_messages_are_not_folded_and_the_order_is_that_of_the_commits(database: Any, heard: Heard) -> None:
    """Guarantee 4: B, A and B again in one transaction end with B; what is rolled back is not told."""
    database.execute("insert into orders values (1, 'A', 0)")
    heard.all()
    with database.sender.transaction(force_rollback=True):
        database.execute("update orders set item = 'never'")
    with database.sender.transaction():
        for item in ("B", "A", "B"):
            database.execute("update orders set item = %s", [item])
    assert [change["row"]["item"] for change in heard.all()] == ["B", "A", "B"]


def test_decimals_and_columns_that_cannot_be_compared(database: Any, heard: Heard) -> None:
    """A pitfall's remedy; a change is one of bytes."""
    exact = list[Any]()
    with Notifier(database.dsn, decode=partial(json.loads, parse_float=Decimal)) as notifier:
        notifier.subscribe("exact", "orders", lambda id, channel, payload, pid: exact.append(payload["row"]["price"]))
        database.execute("insert into orders values (1, 'tea', 0.10)")
        until(lambda: exact)
    assert exact == [Decimal("0.10")]
    assert isinstance(exact[0], Decimal)
    heard.all()
    database.execute("alter table orders add extra json")
    database.execute("update orders set price = price")
    database.execute("""update orders set extra = '{"a": 1}'""")
    assert [change["row"]["extra"] for change in heard.all()] == [{"a": 1}]


HOSTILE = """
create schema hostile;
create table hostile.called (what text);
grant usage on schema hostile to public;
grant all on hostile.called to public;
create function hostile.pg_notify(text, text) returns void language sql
    as $$ insert into hostile.called values ('pg_notify') $$;
create function hostile.clock_timestamp() returns timestamptz language sql
    as $$ insert into hostile.called values ('clock_timestamp'); select 'epoch'::timestamptz $$;
create function hostile.format(text, text) returns text language sql
    as $$ insert into hostile.called values ('format'); select '' $$;
create function hostile.set_config(text, text, bool) returns text language sql
    as $$ insert into hostile.called values ('set_config'); select '' $$;
create table hostile.pg_index (indrelid oid, indkey int2vector, indisprimary bool);
create table hostile.pg_class (oid oid, relname name, relnamespace oid);
create function hostile.to_jsonb(anyelement) returns jsonb language sql
    as $$ insert into hostile.called values ('to_jsonb'); select '{}'::jsonb $$;
create function hostile.octet_length(text) returns int language sql
    as $$ insert into hostile.called values ('octet_length'); select 0 $$;
create function hostile.pick(jsonb, text) returns jsonb language sql
    as $$ insert into hostile.called values ('->'); select '0'::jsonb $$;
create operator hostile.-> (function = hostile.pick, leftarg = jsonb, rightarg = text);
create function hostile.without(jsonb, text) returns jsonb language sql
    as $$ insert into hostile.called values ('-'); select '{}'::jsonb $$;
create operator hostile.- (function = hostile.without, leftarg = jsonb, rightarg = text);
create function hostile.more(int, int) returns bool language sql
    as $$ insert into hostile.called values ('>'); select false $$;
create operator hostile.> (function = hostile.more, leftarg = int, rightarg = int);
create function hostile.same(text, text) returns bool language sql
    as $$ insert into hostile.called values ('='); select false $$;
create operator hostile.= (function = hostile.same, leftarg = text, rightarg = text);
create operator hostile.<> (function = hostile.same, leftarg = text, rightarg = text);
"""


@pytest.fixture
def writer(database: Any) -> Iterator[str]:
    """A role that owns nothing; what it is granted ends with the test."""
    name = f"writer_{uuid.uuid4().hex[:12]}"
    database.execute(f"create role {name}")
    try:
        yield name
    finally:
        database.execute("reset role")
        database.execute("set search_path to default")
        database.execute(f"drop owned by {name}")
        database.execute(f"drop role {name}")


PATHS = pytest.mark.parametrize("path", ["public", "''", "hostile, pg_catalog, public", "pg_temp, hostile"])


@PATHS
def test_a_role_that_may_only_write_the_table(database: Any, heard: Heard, writer: str, path: str) -> None:
    """Guarantee 14: no other grant is needed, and no `search_path` of the writer changes what is run or sent."""
    database.execute(HOSTILE)
    database.execute(f"grant insert, update, delete on orders to {writer}")
    database.execute(f"set role {writer}")
    database.execute(f"set search_path = {path}")
    database.execute("insert into public.orders values (1, 'tea', 4)")
    database.execute("update public.orders set item = pg_catalog.repeat('x', 9000)")
    database.execute("delete from public.orders")
    database.execute("reset role")
    database.execute("set search_path to default")
    told = heard.all()
    assert [(change["op"], change["key"], change.get("row")) for change in told] == [
        ("INSERT", {"id": 1}, {"id": 1, "item": "tea", "price": 4}),
        ("UPDATE", {"id": 1}, None),
        ("DELETE", {"id": 1}, None),
    ]
    assert len({change["at"] for change in told}) == 3
    assert database.execute("select distinct what from hostile.called") == []


@PATHS
def test_the_script_under_any_search_path(database: Any, heard: Heard, path: str) -> None:
    """Guarantee 14: nothing of another schema is run when the triggers are made; the path is as before."""
    database.execute(HOSTILE)
    database.execute(f"set search_path = {path}")
    before = database.execute("show search_path")
    with database.sender.transaction():
        database.execute(trigger_sql("public.orders"))
        assert database.execute("show search_path") == before
    database.execute("set search_path to default")
    assert database.execute("select distinct what from hostile.called") == []
    database.execute("insert into orders values (1, 'tea', 4)")
    assert len(heard.all()) == 1


@PATHS
def test_a_role_that_may_only_write_the_table_in_bulk(
    database: Any, notifier: Notifier, writer: str, path: str
) -> None:
    """Guarantee 14: the same for the triggers of statements."""
    database.execute(HOSTILE)
    database.execute(f"create table readings ({ROW})")
    database.execute(SQL["bulk.sql"])
    heard = Heard(database, notifier, "readings")
    database.execute(f"grant insert, update, delete, truncate on readings to {writer}")
    database.execute(f"set role {writer}")
    database.execute("create temp table changed ()")
    database.execute(f"set search_path = {path}")
    database.execute("insert into public.readings values (1, 'tea', 4), (2, 'rum', 5)")
    database.execute("update public.readings set price = 1")
    database.execute("delete from public.readings")
    database.execute("truncate public.readings")
    database.execute("reset role")
    database.execute("set search_path to default")
    assert [(change["op"], change["rows"]) for change in heard.all()] == [
        ("INSERT", 2),
        ("UPDATE", 2),
        ("DELETE", 2),
        ("TRUNCATE", None),
    ]
    assert database.execute("select distinct what from hostile.called") == []


def test_the_function_has_no_rights_but_the_writers(database: Any, heard: Heard, writer: str) -> None:
    """So nobody gains anything by a trigger of his own that calls it."""
    assert database.execute("select prosecdef from pg_proc where proname like 'pgnotifier%'") == [(False,)]


def test_doctor_finds_nothing_in_these_functions(database: Any, heard: Heard) -> None:
    database.execute(f"create table readings ({ROW})")
    database.execute(SQL["bulk.sql"])
    check = functions(database.sender)
    assert (check.verdict, check.facts) == ("ok", {"functions": []})


def test_only_who_is_granted_it_makes_such_triggers(database: Any, heard: Heard, writer: str) -> None:
    """`notify_statement` is for the owner."""
    database.execute(f"grant create on schema public to {writer}")
    database.execute(f"set role {writer}")
    database.execute("create table own (id int)")
    database.execute("reset role")
    database.execute(f"create table if not exists readings ({ROW})")
    database.execute(SQL["bulk.sql"])
    database.execute(f"set role {writer}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.execute("create trigger t after insert on own execute function notify_statement('c')")


def test_the_script_can_be_run_again(database: Any, heard: Heard, notifier: Notifier) -> None:
    """Nothing fails, and nothing is told twice; another channel replaces the first."""
    database.execute("insert into orders values (1, 'tea', 4)")
    database.execute(trigger_sql("orders"))
    database.execute("insert into orders values (2, 'rum', 5)")
    assert [change["key"]["id"] for change in heard.all()] == [1, 2]
    other = Heard(database, notifier, "other")
    database.execute(trigger_sql("orders", "other"))
    database.execute("insert into orders values (3, 'gin', 6)")
    assert [change["key"]["id"] for change in other.all()] == [3]
    assert heard.all() == []


def test_one_notification_for_each_statement(database: Any, notifier: Notifier) -> None:
    """The triggers for bulk changes: nothing for no row, one for many; faster than a call for each."""
    database.execute(f"create table readings ({ROW})")
    database.execute(SQL["bulk.sql"])
    heard = Heard(database, notifier, "readings")
    database.execute("insert into readings select i, 'tea', 0 from generate_series(1, 500) i")
    database.execute("update readings set price = 1 where id <= 10")
    database.execute("update readings set price = 1 where id < 0")
    database.execute("delete from readings where id <= 5")
    database.execute("truncate readings")
    assert heard.all() == [
        {"op": op, "table": "readings", "rows": rows}
        for op, rows in (("INSERT", 500), ("UPDATE", 10), ("DELETE", 5), ("TRUNCATE", None))
    ]


def test_a_row_trigger_costs_more(database: Any, heard: Heard) -> None:
    """Why there are statement triggers: the same rows, both ways, side by side."""
    database.execute(f"create table readings ({ROW})")
    database.execute(SQL["bulk.sql"])
    took: dict[str, list[float]] = {"orders": [], "readings": []}
    for part in range(3):
        for table, times in took.items():
            began = time.perf_counter()
            database.execute(
                f"insert into {table} select i, 'tea', 0 from generate_series(%s::int, %s::int) i",
                [part * 5000, part * 5000 + 4999],
            )
            times.append(time.perf_counter() - began)
    ratio = min(took["orders"]) / min(took["readings"])
    print(f"a row trigger took {ratio:.1f} times as long")
    assert ratio > 1.5
    assert len(heard.all()) == 15000


def test_the_script(database: Any, heard: Heard, tmp_path: Path) -> None:
    """As it is pasted and run."""
    write("trigger.md", tmp_path, "orders.py")
    log = tmp_path / "log"
    with process(tmp_path, "orders.py", DATABASE_URL=database.dsn) as child:
        until(lambda: child.poll() is not None or len(database.listeners()) == 2)
        number = 0

        def told() -> bool:
            nonlocal number
            number += 1
            database.execute("insert into orders values (%s, 'tea', 1)", [number])
            return "INSERT orders {'id': " in log.read_text()

        until(told)
        child.terminate()
        child.wait(10)
    assert "{'id': " in log.read_text()
    assert "Traceback" not in log.read_text()
