"""Guarantee 14: `pgnotifier trigger`: the names it takes, and what it writes, run by psql where that is installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from command import environ, run
from pgnotifier.cli.trigger import parse_table, trigger_sql


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("orders", ["orders"]),
        ("Orders", ["orders"]),
        ("ORDERS_2$", ["orders_2$"]),
        ("Été", ["Été"]),  # SQL folds ASCII only
        ('"Orders"', ["Orders"]),
        ("Sales.Orders", ["sales", "orders"]),
        (' "My ""Shop""" . Orders\n', ['My "Shop"', "orders"]),
        ('"a.b"."c;d"', ["a.b", "c;d"]),
        ("order", ["order"]),
        ("x" * 63, ["x" * 63]),
    ],
)
def test_a_name_is_read_as_sql_reads_it(text: str, parts: list[str]) -> None:
    assert parse_table(text) == parts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *((text, "not the name of a table") for text in ("", "a.", ".a", "a..b", "a.b.c", "a b", '""', '"a', "1a")),
        *((text, "not the name of a table") for text in ("$a", "a;", "a--b", '"a\0b"', 'a"b"', "orders'")),
        ("x" * 64, "at most 63 bytes, not 64"),
        ("é" * 32, "at most 63 bytes, not 64"),
        ("y." + "x" * 64, "at most 63 bytes, not 64"),
    ],
)
def test_a_name_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_table(text)


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=15))
def test_the_script_is_ascii_and_one_statement(name: str) -> None:
    sql = trigger_sql('"' + name.replace('"', '""') + '"', name)
    assert sql.isascii()
    comment, _, rest = sql.partition("\ndo $")
    assert all(line.startswith("--") for line in comment.splitlines())
    tag, _, rest = ("$" + rest).partition("\n")
    assert rest.count(tag) == 1
    assert rest.endswith(f"end {tag};\n")


NAMES = [
    "orders",
    "Order",
    "select",
    "a.b",
    "it's",
    'do "it"',
    "back\\slash",
    "%s %I {x}",
    "$pgnotifier$ $create$ $body$",
    ":name :'name' \\q",
    "two\nlines",
    "-- /*",
    "über 😀",
    "x" * 53,
    "é" * 31,
]


@pytest.fixture
def database(server: str) -> Iterator[str]:
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute("create database triggers")
        yield server.replace("/postgres?", "/triggers?")
        conn.execute("drop database triggers with (force)")


@pytest.mark.parametrize("standard", ["on", "off"])
def test_any_name_of_a_table_and_a_schema(database: str, standard: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"set standard_conforming_strings = {standard}")
        for name in NAMES:
            quoted = '"' + name.replace('"', '""') + '"'
            conn.execute(f"create schema {quoted}".encode())
            conn.execute(f"create table {quoted}.{quoted} (id int primary key)".encode())
            for _ in range(2):
                conn.execute(trigger_sql(f"{quoted}.{quoted}").encode())
            conn.execute(f"listen {quoted}".encode())
            conn.execute(f"insert into {quoted}.{quoted} values (1)".encode())
        got = [(n.channel, json.loads(n.payload)) for n in conn.notifies(timeout=5, stop_after=len(NAMES))]
    assert [channel for channel, _ in got] == NAMES
    assert [(change["schema"], change["table"], change["key"]) for _, change in got] == [
        (name, name, {"id": 1}) for name in NAMES
    ]


def test_a_table_without_its_schema_is_found_by_the_search_path(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("create schema app; create table app.orders (); create table public.orders ()")
        conn.execute("set search_path = app")
        conn.execute(trigger_sql("orders").encode())
        conn.execute("set search_path = public")
        with pytest.raises(psycopg.errors.UndefinedTable, match="nowhere"):
            conn.execute(trigger_sql("nowhere").encode())
        found = conn.execute("select distinct tgrelid::regclass::text from pg_trigger where tgname ~ 'pgnotifier'")
        assert found.fetchall() == [("app.orders",)]


def test_partitions_notify_as_their_table(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("create table parts (id int, k int, primary key (id, k)) partition by range (id)")
        conn.execute("create table part1 partition of parts for values from (0) to (10)")
        conn.execute(trigger_sql("parts").encode())
        conn.execute("create table part2 partition of parts for values from (10) to (20)")
        conn.execute("listen parts")
        conn.execute("insert into parts values (1, 1), (11, 2)")
        got = [json.loads(n.payload) for n in conn.notifies(timeout=5, stop_after=2)]
    assert [(change["table"], change["key"]) for change in got] == [
        ("parts", {"id": 1, "k": 1}),
        ("parts", {"id": 11, "k": 2}),
    ]


def test_a_key_that_is_too_long_is_left_out_too(database: str) -> None:
    """The change itself must not fail."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("create table long (a text, b text, c text, d text)")
        conn.execute(trigger_sql("long").encode())
        conn.execute("listen long")
        for text, kept in (("x" * 1500, {"key", "row"}), ("x" * 1999, {"key"}), ("\x01" * 1400, {"key"})):
            conn.execute("insert into long values (%s, %s, %s, %s)", [text] * 4)
            [change] = [json.loads(n.payload) for n in conn.notifies(timeout=5, stop_after=1)]
            assert {"key", "row"} & set(change) == kept
        conn.execute("truncate long")
        conn.execute("alter table long add primary key (a, b)")
        list(conn.notifies(timeout=5, stop_after=1))
        conn.execute("insert into long values (%s, %s)", ["\x01" * 800, "\x02" * 800])  # six bytes each in JSON
        [change] = [json.loads(n.payload) for n in conn.notifies(timeout=5, stop_after=1)]
        assert sorted(change) == ["at", "op", "schema", "table"]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_into_psql(database: str, locale: str) -> None:
    """As in the documentation, under any locale; without psql the same text goes to the server itself."""
    env = {"LC_ALL": locale, "PGCLIENTENCODING": "LATIN1"}
    code, sql, err = run("trigger", '"über :x"', "--channel", "c", **env)
    assert (code, err) == (0, "")
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute('create table "über :x" (id int)')
        conn.execute("listen c")
        if psql := shutil.which("psql"):
            command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "x=y", database]
            done = subprocess.run(command, input=sql, capture_output=True, text=True, timeout=20, env=environ(**env))
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        else:
            conn.execute(sql.encode())
        conn.execute('insert into "über :x" values (1)')
        [change] = [json.loads(n.payload) for n in conn.notifies(timeout=5, stop_after=1)]
    assert change["table"] == "über :x"


def test_it_connects_to_nothing() -> None:
    code, out, err = run("trigger", "orders", PGHOST="/nowhere", PGPORT="1")
    assert (code, err) == (0, "")
    assert out == trigger_sql("orders")
    code, _, err = run("trigger", "orders", "-d", "x")
    assert (code, err.count("\n")) == (2, 1)


def test_its_reader_may_go() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.closing(os.fdopen(writer, "w")) as out:
        command = [sys.executable, "-m", "pgnotifier", "trigger", "orders"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=20)
    assert (done.returncode, done.stderr) == (0, b"")
