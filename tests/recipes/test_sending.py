"""docs/recipes/sending.md: guarantees 4, 7 and 13 with what is sent in SQL."""

from __future__ import annotations

import ast
import re
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier

from .conftest import Database
from .page import RECIPES, blocks, load

RECIPE = load("sending.md", "send_many", "send_pairs", "own_transaction")


class Heard:
    """Everything notified on some channels, in order."""

    def __init__(self, database: Database, notifier: Notifier) -> None:
        self.database, self.events = database, list[tuple[str, Any]]()
        for channel in ("orders", "ticks", "mark"):
            notifier.subscribe(
                self, channel, lambda id, channel, payload, pid: self.events.append((channel, payload))
            )

    def all(self) -> list[tuple[str, Any]]:
        self.database.execute("select pg_notify('mark', '')")
        until(lambda: ("mark", "") in self.events)
        events, self.events = self.events, []
        return events[:-1]

    def payloads(self) -> list[Any]:
        return [payload for _, payload in self.all()]


@pytest.fixture
def heard(database: Database) -> Iterator[Heard]:
    database.execute("create table orders (id int primary key, total int, shipped bool not null default false)")
    with Notifier(database.dsn) as notifier:
        yield Heard(database, notifier)


def test_many_in_one_statement(database: Database, heard: Heard) -> None:
    """Guarantee 7: any values, in order, the same at the other end; one row comes back."""
    values = [{"id": 1}, None, True, "42", "text", ("a", b"b"), {1, 2}, 1.5, [], ""]
    RECIPE["send_many"](database.sender, "orders", values)
    assert heard.payloads() == values
    RECIPE["send_many"](database.sender, "orders", range(5000))
    assert heard.payloads() == list(range(5000))
    RECIPE["send_many"](database.sender, "orders", [])
    assert heard.payloads() == []


def test_in_sql_alone(database: Database, heard: Heard) -> None:
    database.execute("insert into orders values (1, 5), (2, 50)")
    ticks, orders = blocks("sending.md")["sql"].strip().splitlines()
    assert database.execute(ticks) == [(1000,)]
    assert heard.all() == [("ticks", i) for i in range(1, 1001)]
    assert database.execute(orders) == [(1,)]
    assert heard.all() == [("orders", {"id": 2, "total": 50})]


def test_pairs_are_one_commit(database: Database, heard: Heard) -> None:
    """All of them or none, in order across channels."""
    pairs: list[tuple[str, object]] = [("orders", 1), ("ticks", "x"), ("orders", {"a": (1,)}), ("ticks", 2)]
    with psycopg.connect(database.dsn) as conn:
        RECIPE["send_pairs"](conn, pairs)
        assert heard.all() == pairs  # committed before the connection is closed
    before = transactions(database)
    RECIPE["send_pairs"](database.sender, [("ticks", i) for i in range(100)])
    assert transactions(database) - before <= 3
    assert heard.payloads() == list(range(100))
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        RECIPE["send_pairs"](database.sender, [("orders", 1), ("orders", "x" * 8000)])
    assert heard.all() == []


def transactions(database: Database) -> int:
    """How many have been given a number, which a transaction that notifies is."""
    return int(database.execute("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0])


def test_with_the_change_or_not_at_all(database: Database, heard: Heard) -> None:
    """Guarantee 13: in the application's own transaction."""
    database.execute("insert into orders values (1, 5), (2, 5)")
    RECIPE["ship"](database.sender, 1)
    assert heard.payloads() == [{"id": 1, "shipped": True}]
    with database.sender.transaction(force_rollback=True):
        RECIPE["ship"](database.sender, 2)
    assert heard.payloads() == []
    assert database.execute("select id from orders where shipped") == [(1,)]
    with psycopg.connect(database.dsn) as conn:
        RECIPE["ship"](conn, 2)
        assert heard.payloads() == [{"id": 2, "shipped": True}]  # committed before the connection is closed
    with database.sender.transaction():  # savepoints, and equal pairs
        RECIPE["send_many"](database.sender, "orders", ["kept", "twice", "between", "twice"])
        with database.sender.transaction(force_rollback=True):
            RECIPE["send_many"](database.sender, "orders", ["undone"])
    assert heard.payloads() == ["kept", "twice", "between"]


def test_one_transaction_is_many_times_faster(database: Database, heard: Heard) -> None:
    """Side by side in one run: the fastest of three each."""
    took: dict[str, list[float]] = {"one": [], "many": []}
    for _ in range(3):
        began = time.perf_counter()
        RECIPE["send_many"](database.sender, "ticks", range(300))
        took["one"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for number in range(300):
            database.execute("select pg_notify('ticks', %s)", [str(number)])
        took["many"].append(time.perf_counter() - began)
    ratio = min(took["many"]) / min(took["one"])
    print(f"300 transactions took {ratio:.0f} times as long as one statement")
    assert ratio > 3
    assert heard.payloads() == [*range(300)] * 6


def test_what_others_send(database: Database, heard: Heard) -> None:
    """Guarantee 7: the table of what is sent and what is received, line by line."""
    rows = re.findall(r"^\| `(.+)` \| `(.+)` \|$", (RECIPES / "sending.md").read_text(), re.MULTILINE)
    assert len(rows) == 8
    for sent, received in rows:
        database.execute(sent)
        [(channel, payload)] = heard.all()
        assert channel == "orders"
        assert (payload, type(payload)) == (ast.literal_eval(received), type(ast.literal_eval(received))), sent
    database.execute("notify Orders, 'folded'")
    database.execute("select pg_notify('Orders', 'not folded')")
    assert heard.payloads() == ["folded"]
    with Notifier(database.dsn, decode=str) as notifier:
        plain = Heard(database, notifier)
        database.execute("notify orders, '42'")
        assert plain.payloads() == ["42"]
