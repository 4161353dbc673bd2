"""docs/recipes/sqlalchemy.md: what a session commits is heard, what it rolls back is not; a loss is made good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL
from sqlalchemy.orm import Session

from conftest import until
from pgnotifier import Notifier

from .conftest import Database
from .page import blocks, load, process, write


def url(database: Database) -> str:
    conf = conninfo_to_dict(database.dsn)
    where = {key: str(conf[key]) for key in ("host", "port") if key in conf}
    made = URL.create("postgresql+psycopg", str(conf["user"]), "un/usual@", database=database.name, query=where)
    return made.render_as_string(hide_password=False)


@pytest.fixture
def page(database: Database, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DATABASE_URL", url(database))
    database.execute("create table orders (id int generated always as identity primary key, customer text not null)")
    module = load("sqlalchemy.md", "orders.py")
    yield module
    module["engine"].dispose()


def test_what_commits_is_heard(page: Any) -> None:
    place, heard = page["place_order"], page["customers"]
    with Notifier(page["engine"].url) as n:
        n.subscribe("customers", "orders", page["order_changed"], on_listen=page["read_orders"])
        with Session(page["engine"]) as session:
            place(session, "nobody")  # is rolled back
        with Session(page["engine"]) as session, session.begin():
            place(session, "Ada")
        with Session(page["engine"]) as session, session.begin():
            place(session, "Bob")
        until(lambda: sorted(heard.values()) == ["Ada", "Bob"])
        assert n.status()["failed"] == 0


def test_what_was_missed_is_read(page: Any, database: Database) -> None:
    insert, names = "insert into orders (customer) values (%s)", page["customers"]
    database.execute(insert, ["Ada"])
    with Notifier(page["engine"].url, retry_delay=(0.01, 0.1)) as n:
        n.subscribe("customers", "orders", page["order_changed"], on_listen=page["read_orders"])
        until(lambda: list(names.values()) == ["Ada"])
        with database.unreachable():
            database.execute(insert, ["Bob"])
        until(lambda: list(names.values()) == ["Ada", "Bob"])


def test_both_programs(page: Any, database: Database, tmp_path: Path) -> None:
    write("sqlalchemy.md", tmp_path, *blocks("sqlalchemy.md"))
    follow, orders = tmp_path / "follow", tmp_path / "orders"
    with process(tmp_path, "follow.py", log="follow"):
        until(lambda: database.listeners(), 20)
        with process(tmp_path, "orders.py", log="orders"):
            until(lambda: "Ada" in follow.read_text() or "Error" in follow.read_text() + orders.read_text(), 20)
    assert follow.read_text() == "1 Ada\n"
