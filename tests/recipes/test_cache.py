"""docs/recipes/cache.md: guarantee 10, a cache that is right again after any fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier.cli.trigger import trigger_sql

from .conftest import Database
from .page import blocks, load


@pytest.fixture
def prices(database: Database) -> Iterator[Any]:
    database.execute(blocks("cache.md")["prices.sql"])
    database.execute(trigger_sql("prices"))
    database.execute("insert into prices values ('tea', 1), ('rum', 1)")
    module = load("cache.md", "prices.py", "use", DSN=database.dsn)
    yield module["prices"]
    module["notifier"].stop()


def right(database: Database, prices: Any) -> bool:
    return bool(prices.by_item == dict(database.execute("select item, price from prices")))


def test_it_follows_every_change(database: Database, prices: Any) -> None:
    """Guarantee 10: read when listening has begun, and kept up from there."""
    assert prices.by_item == {"tea": 1, "rum": 1}
    database.execute("insert into prices values ('gin', 7)")
    database.execute("update prices set price = 2 where item = 'tea'")
    database.execute("delete from prices where item = 'rum'")
    until(lambda: prices.by_item == {"tea": 2, "gin": 7})
    with database.sender.transaction():  # equal values in one transaction
        for price in (3, 2, 3):
            database.execute("update prices set price = %s where item = 'tea'", [price])
    database.execute("insert into prices values ('last', 0)")
    until(lambda: "last" in prices.by_item)
    assert prices.by_item["tea"] == 3
    database.execute("update prices set item = 'last but one' where item = 'last'")
    until(lambda: right(database, prices))
    database.execute("truncate prices")
    until(lambda: prices.by_item == {})


def test_it_is_right_after_its_session_was_killed(database: Database, prices: Any) -> None:
    """Guarantee 10: what changed while nobody could be told is read again, again and again."""
    for price in range(2, 5):
        assert prices.fresh.wait(10)
        with database.unreachable():
            until(lambda: not prices.fresh.is_set())
            database.execute("update prices set price = %s where item = 'tea'", [price])
            database.execute("delete from prices where item = 'rum'")
            assert not right(database, prices)
        until(lambda: right(database, prices))
        until(prices.fresh.is_set)


def test_it_is_right_while_sessions_are_killed_and_rows_change(database: Database, prices: Any) -> None:
    """Guarantee 10: with changes before, during and after."""
    for number in range(30):
        database.execute(
            "insert into prices values ('tea', %s) on conflict (item) do update set price = excluded.price", [number]
        )
        if number % 6 == 0:
            database.terminate()
    until(lambda: prices.fresh.is_set() and right(database, prices))


def test_a_change_while_it_reads_is_not_lost(
    database: Database, prices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 10: listening comes first, then reading, then what is notified from there on."""
    real, read = psycopg.connect, list[int]()

    class Slow:
        """A connection whose transaction saw the table before another changed it."""

        def __init__(self, *args: Any) -> None:
            self.conn = real(*args)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exc: object) -> None:
            self.conn.close()

        def execute(self, query: str) -> Any:
            cursor = self.conn.execute(query)
            read.append(database.sender.execute("update prices set price = price + 1 where item = 'tea'").rowcount)
            return cursor

    monkeypatch.setattr(psycopg, "connect", Slow)
    prices.fresh.clear()
    database.terminate()
    until(lambda: read)
    until(lambda: prices.by_item["tea"] == 2)
    assert right(database, prices)


def test_reading_is_tried_again(database: Database, prices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 10: the recipe reads again by itself, because it reads in on_change, too; stop() ends that."""
    real, attempts = psycopg.connect, list[int]()

    def refused(*args: Any) -> Any:
        attempts.append(1)
        if len(attempts) > 1:
            return real(*args)
        raise psycopg.OperationalError("not now")

    monkeypatch.setattr(psycopg, "connect", refused)
    database.execute("alter table prices disable trigger user")
    database.execute("update prices set price = 5")
    database.terminate()
    until(lambda: prices.by_item == {"tea": 5, "rum": 5})
    assert len(attempts) == 2
    assert prices.fresh.wait(10)  # set after the prices are
    prices.notifier.stop()
    assert not prices.fresh.is_set()
