"""Guarantee 2: no piece of a password in any error, status, gap or log record, however it is written."""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest

from command import run
from conftest import until
from pgnotifier import Gap, Notifier

PIECES = ("kqzj", "wvxy", "mnbh")
SPECIAL = "@#/?%:[]&=+,; \\'\"!$*()~"
CHOICE = random.Random(2)
BETWEEN = [(c, c) for c in SPECIAL] + [(CHOICE.choice(SPECIAL), CHOICE.choice(SPECIAL)) for _ in range(20)]


def password(between: tuple[str, str]) -> str:
    one, two, three = PIECES
    return f"{one}{between[0]}{two}{between[1]}{three}"


def without_secret(text: str) -> None:
    lower = text.lower()
    for piece in PIECES:
        for begin in range(len(piece) - 2):
            assert piece[begin : begin + 3] not in lower, text


def said(error: BaseException | None) -> str:
    """All that an error shows, and those that led to it, to whoever prints, logs or inspects them."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def confs(secret: str) -> list[str | Mapping[str, Any]]:
    return [
        f"postgresql://u:{secret}@127.0.0.1:1/db",
        f"postgresql://u:{secret}@127.0.0.1/db?port=1",
        f"postgres://u:{secret}@nowhere.invalid",
        f"postgresql://{secret}@127.0.0.1:1/db",
        f"host=127.0.0.1 port=1 password={secret}",
        f"password={secret} host=127.0.0.1 port=1",
        f"host=127.0.0.1 port=1 password='{secret}'",
        {"host": "127.0.0.1", "port": 1, "password": secret},
        {"host": "nowhere.invalid", "password": secret},
        {"host": f"u:{secret}@127.0.0.1", "port": 1},
        {"host": "127.0.0.1", "port": f"1@{secret}"},
        {"conninfo": f"postgresql://u:{secret}@127.0.0.1:1/db", "connect_timeout": 2},
        {"host": "127.0.0.1", "port": 1, "password": secret + "\ud800"},
        f"postgresql+psycopg://u:{secret}@127.0.0.1:1/db?connect_timeout=2",
        f"postgresql+asyncpg://u:{secret}@127.0.0.1:1/db?ssl=require",
        f"host=127.0.0.1 port=1 password=a://b?{secret}=c nonsense",
        {"host": "127.0.0.1", "port": 1, "dbname": f"postgresql://u:{secret}@127.0.0.1/db"},
    ]


@pytest.mark.parametrize("between", BETWEEN, ids=lambda b: repr("".join(b)))
def test_no_piece_of_a_password_is_in_the_error(between: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for conf in confs(password(between)):
        with pytest.raises(psycopg.Error) as caught:
            Notifier(conf)
        if isinstance(conf, str) and conf.startswith(f"postgresql://{PIECES[0]}"):
            continue  # without a user it is one: that may be shown
        without_secret(said(caught.value) + repr(Notifier(conf, autostart=False)))
    without_secret(caplog.text)


@pytest.mark.parametrize("special", "@/%")
def test_the_error_says_what_to_do(special: str) -> None:
    for user in ("u", "u.v", "localhost"):
        with pytest.raises(psycopg.Error, match="write special characters of a password as %40 for @"):
            Notifier(f"postgresql://{user}:{password((special, special))}@127.0.0.1:1/db")


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg"])
def test_a_question_mark_and_no_host(scheme: str) -> None:
    """What stands before the `?` is no complete address, so that what follows is not named as an option."""
    with pytest.raises(psycopg.ProgrammingError, match="%3F for") as caught:
        Notifier(f"{scheme}://u:{PIECES[0]}?{PIECES[1]}={PIECES[2]}")
    without_secret(said(caught.value))


def test_a_number_before_the_slash() -> None:
    """libpq reads a host, a port, and a database that holds the rest of the password."""
    conf = f"postgresql://localhost:5432/{PIECES[0]}@127.0.0.1/db"
    with pytest.raises(psycopg.ProgrammingError, match="%2F for /") as caught:
        Notifier(conf)
    without_secret(said(caught.value))


@pytest.mark.parametrize("conf", ["postgresql://h/d?application_name=a@b", "host=@abstract", "user=a@b host=h"])
def test_an_at_sign_elsewhere_is_good(conf: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        Notifier(conf + ("&" if "?" in conf else " ") + "connect_timeout=2")


def test_a_host_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "u:kqzj@wvxy@127.0.0.1")
    with pytest.raises(psycopg.ProgrammingError) as caught:
        Notifier()
    without_secret(said(caught.value))


def test_no_piece_of_a_password_is_in_what_a_loss_leaves(
    server: str, sender: psycopg.Connection[Any], channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee 10: the connection is lost, and the next `dbconf` cannot be read, resolved or reached."""
    caplog.set_level(logging.DEBUG)
    conf: list[Any] = [server]
    seen: list[Any] = []
    with Notifier(lambda: conf[0], retry_delay=(0.001, 0.001)) as n:
        n.subscribe("events", n.SYSCHAN, lambda *a: seen.append(a))
        n.subscribe("s", channel, print, on_listen=lambda *a: seen.append(a))
        for conf[0] in confs("kqzj@wvxy@mnbh")[:3] + confs("kqzj/wvxy")[:1] + confs("kqzj%wvxy")[:1]:
            pid, errors = n.status()["pid"], caplog.text.count("attempt 1 to connect failed")
            sender.execute("select pg_terminate_backend(%s)", (pid,))
            until(lambda errors=errors: caplog.text.count("attempt 1 to connect failed") > errors)
            without_secret(str(n.status()))
            with pytest.raises(psycopg.Error) as caught:
                n.notify(channel)
            without_secret(said(caught.value))
            conf[0] = server
            until(lambda: n.status()["connected"])
        until(lambda: any(isinstance(a[2], Gap) for a in seen))
        seen.append((n.status(), repr(n)))
    without_secret(repr(seen))
    without_secret(caplog.text)


@pytest.mark.parametrize("between", [("@", "/"), ("?", "#"), (" ", "%")], ids=repr)
def test_no_piece_of_a_password_is_on_the_terminal(between: tuple[str, str]) -> None:
    secret = password(between)
    dsns = [conf for conf in confs(secret) if isinstance(conf, str) and "//kq" not in conf]
    for dsn in (dsns[0], dsns[3]):
        for args in (["notify", "c", "--dsn", dsn], ["doctor", "--dsn", dsn], ["--dsn", dsn, "listen", "c"]):
            code, out, err = run(*args)
            assert code in (1, 2)
            assert out or err.count("\n") == 1
            without_secret(out + err)
    for dsn in (dsns[0], dsns[3]):  # the shell has taken it to pieces
        code, out, err = run("notify", "c", "x", "--dsn", *dsn.split())
        assert code in (1, 2)
        without_secret(out + err)
