"""Guarantees 2 and 12: common mistakes in a `dbconf`, made on a real server, and the cure that each error names."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL

from conftest import until
from pgnotifier import Notifier

from .servers import Server, free_port


def said(dbconf: Any, kind: type[psycopg.Error] = psycopg.OperationalError) -> str:
    with pytest.raises(kind) as caught:
        Notifier(dbconf)
    return str(caught.value)


# -- SQLAlchemy's URLs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_a_driver_in_the_url_is_dropped(db: Server, scheme: str) -> None:
    with Notifier(f"{scheme}://postgres@127.0.0.1:{db.port}/postgres?application_name=a+b%2Bc") as n:
        assert n.status()["connected"]
        name = "a+b+c" if "+" not in scheme else "a b+c"  # SQLAlchemy writes a space as +
        query = "select application_name from pg_stat_activity where pid = %s"
        assert db.execute(query, [n.status()["pid"]]) == [(name,)]
        assert repr(n) == f"<Notifier listening, postgres@127.0.0.1:{db.port}/postgres, channels=0, subscribers=0>"


@pytest.mark.parametrize("password", ["plain", "a b+c@d/e:f?g#h%i", "ü"])
def test_a_url_object_with_its_password(guarded: Server, password: str) -> None:
    """Also several hosts, which SQLAlchemy writes one by one."""
    guarded.execute(f"alter role guarded password '{password.replace('%', '%%')}'")
    url = URL.create(
        "postgresql+psycopg2",
        "guarded",
        password,
        database="postgres",
        query={"host": [f"127.0.0.1:{free_port()}", f"127.0.0.1:{guarded.port}"], "connect_timeout": "5"},
    )
    for dbconf in (url, url.set(drivername="postgresql"), lambda: url, url.render_as_string(hide_password=False)):
        with Notifier(dbconf) as n:
            assert n.status()["connected"]
            assert password not in repr(n) + str(n.status())
    assert password not in said(url.set(password=password + "x"))


def test_a_url_of_another_database() -> None:
    text = said("mysql+pymysql://ada:hunter22@127.0.0.1/app", psycopg.ProgrammingError)
    assert "wanted is a URI (postgresql://user@host/database)" in text
    assert "hunter22" not in text


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("ssl=require", "dbconf: libpq has no option 'ssl'; write sslmode=require"),
        ("sslmode=require&pool_size=5", "dbconf: libpq has no option 'pool_size'; leave it out"),
        ("async_fallback=true", "dbconf: libpq has no option 'async_fallback'; leave it out"),
    ],
)
def test_an_option_that_libpq_does_not_know(query: str, says: str) -> None:
    for scheme in ("postgresql", "postgresql+asyncpg"):
        assert said(f"{scheme}://ada:hunter22@127.0.0.1/app?{query}", psycopg.ProgrammingError) == says


def test_an_option_that_may_be_a_piece_of_a_password() -> None:
    for scheme in ("postgresql", "postgresql+psycopg"):
        text = said(f"{scheme}://ada:hun/?kqzj=22@127.0.0.1/app", psycopg.ProgrammingError)
        assert "kqzj" not in text
        assert "%3F for ?" in text


@pytest.mark.parametrize(
    "rest",
    [
        "ada:hun?@kqzj/kqzj@127.0.0.1/app",  # for libpq the credentials end at the first @, and the host follows
        "ada@127.0.0.1/app?password=hun&kqzj=22",
    ],
)
def test_a_piece_of_a_password_behind_a_question_mark(rest: str) -> None:
    for scheme in ("postgresql", "postgresql+psycopg"):
        assert "kqzj" not in said(f"{scheme}://{rest}", psycopg.ProgrammingError)
        assert "kqzj" not in repr(Notifier(f"{scheme}://{rest}", autostart=False))


def test_an_unquoted_at_sign() -> None:
    for scheme in ("postgresql", "postgresql+psycopg"):
        text = said(f"{scheme}://ada:hunter@22@127.0.0.1/app", psycopg.ProgrammingError)
        assert text.startswith(
            "dbconf: its host, port or database can't be right; in a URI, write special characters"
        )
        assert "%40 for @" in text
        assert "hunter" not in text


# -- what a server, or none, answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_localhost_in_a_container(host: str) -> None:
    assert said(f"host={host} port={free_port()}").endswith(
        "\nHINT:  in a container, localhost is the container itself: use the name of the database's service, or "
        "host.docker.internal for the machine that runs the container"
    )


def test_another_host_that_refuses_gets_no_such_hint() -> None:
    own = socket.gethostbyname(socket.gethostname())
    if own.startswith("127."):
        own = "127.0.0.9"
    assert "HINT" not in said(f"host={own} port={free_port()}")


def test_no_host_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGHOST", raising=False)
    assert said(f"postgresql:///app?port={free_port()}").endswith(
        "\nHINT:  for a server on another machine or in a container, give its host"
    )


@pytest.fixture
def guarded(db: Server) -> Iterator[Server]:
    """The cluster, with a role that needs a password, and one that no rule lets in."""
    for role in ("guarded", "secured"):
        db.execute(f"drop role if exists {role}")
        db.execute(f"create role {role} login")
    path = db.data / "pg_hba.conf"
    before = path.read_text()
    path.write_text("host all guarded all scram-sha-256\nhost all postgres all trust\nlocal all postgres trust\n")
    db.execute("select pg_reload_conf()")
    until(lambda: "scram" in str(db.execute("select auth_method from pg_hba_file_rules")))
    yield db
    path.write_text(before)
    db.execute("select pg_reload_conf()")
    until(lambda: "scram" not in str(db.execute("select auth_method from pg_hba_file_rules")))


def test_a_server_that_requires_ssl(guarded: Server) -> None:
    """What PostgreSQL says where only a rule `hostssl` would let the role in."""
    text = said(f"{guarded.dsn} user=secured")
    assert "no pg_hba.conf entry" in text
    assert text.endswith("\nHINT:  if the server requires SSL, add sslmode=require")


def test_a_server_without_ssl(db: Server) -> None:
    text = said(f"{db.dsn} sslmode=require")
    assert "server does not support SSL, but SSL was required" in text
    assert text.endswith("\nHINT:  use sslmode=prefer, or switch ssl on in the server's configuration")
