"""Guarantees 2 and 12: what is refused, how the text says so, and that nothing was changed; no password anywhere."""

from __future__ import annotations

import logging
import os
import re
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import pgnotifier
from conftest import until
from pgnotifier import (
    CannotListen,
    InvalidChannel,
    Notifier,
    NotifierError,
    PayloadTooLong,
    UnknownChannel,
    UnknownSubscriber,
)

Conn = psycopg.Connection[Any]
SYSCHAN = Notifier.SYSCHAN


# -- the classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (NotifierError, (Exception,)),
        (InvalidChannel, (NotifierError, ValueError)),
        (UnknownChannel, (NotifierError, KeyError)),
        (UnknownSubscriber, (NotifierError, KeyError)),
        (PayloadTooLong, (NotifierError, ValueError)),
        (CannotListen, (NotifierError, psycopg.OperationalError)),
    ],
)
def test_bases(error: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    """Guarantee 12; and `str()` is the text, also for the KeyErrors, which would show its repr."""
    assert issubclass(error, bases)
    assert all(issubclass(error, base) for base in bases)
    others = {ValueError, KeyError, TypeError, psycopg.Error} - {b for base in bases for b in base.__mro__}
    assert not any(issubclass(error, other) for other in others)
    assert str(error("the 'text'")) == "the 'text'"
    assert getattr(pgnotifier, error.__name__) is error
    assert error.__name__ in pgnotifier.__all__


# -- refused calls ----------------------------------------------------------------------------------------------


@pytest.fixture
def n(server: str) -> Iterator[Notifier]:
    """With something of everything, a change that is pending included."""
    with Notifier(server) as n:
        n.subscribe("one", "a", print)
        n.subscribe("two", "a", print)
        n.subscribe("one", "b", print)
        n.subscribe("one", "muted", print)
        n.mute_channels("muted")
        n.mute_subscriber("two")
        n.add_channels("empty")
        n.unsubscribe("one", "b", autorun=False)
        n.subscribe("one", "pending", print, autorun=False)
        yield n


def seen(n: Notifier) -> Any:
    status = n.status()
    return (
        n.channels(),
        n.subscribers(),
        n.active_channels(),
        n.muted_subscribers(),
        {key: status[key] for key in ("running", "pid", "restarts", "since", "active")},
    )


def refused(n: Notifier, error: type[Exception], call: Callable[[], Any], *parts: str) -> None:
    """It raises `error`, the text holds each of `parts` (patterns), nothing has changed, and the notifier hears."""
    before = seen(n)
    with pytest.raises(error) as caught:
        call()
    assert seen(n) == before
    for part in parts:
        assert re.search(part, str(caught.value), re.IGNORECASE), str(caught.value)
    assert not str(caught.value).startswith(('"', "'")) or error not in (UnknownChannel, UnknownSubscriber)
    got: list[Any] = []
    n.subscribe("still", "a", lambda *a: got.append(a[2]), autorun=False)
    n.notify("a", 1)
    until(lambda: got == [1])


ON_ONE: dict[str, Callable[[Notifier, Any], Any]] = {
    "subscribe": lambda n, name: n.subscribe("one", name, print),
    "subscribe autorun=False": lambda n, name: n.subscribe("new", name, print, autorun=False),
    "unsubscribe": lambda n, name: n.unsubscribe("one", name),
    "notify": lambda n, name: n.notify(name, "x"),
}
ON_MANY: dict[str, Callable[[Notifier, Any], Any]] = {
    "add_channels": lambda n, names: n.add_channels(names),
    "remove_channels": lambda n, names: n.remove_channels(names),
    "remove_channels autorun=False": lambda n, names: n.remove_channels(names, autorun=False),
    "mute_channels": lambda n, names: n.mute_channels(names),
    "unmute_channels": lambda n, names: n.unmute_channels(names),
    "mute_subscriber": lambda n, names: n.mute_subscriber("one", names),
    "unmute_subscriber": lambda n, names: n.unmute_subscriber("two", names),
    "muted_channels": lambda n, names: n.muted_channels(names),
    "non_muted_channels": lambda n, names: n.non_muted_channels(names),
    "muted_subscribers": lambda n, names: n.muted_subscribers(names),
    "non_muted_subscribers": lambda n, names: n.non_muted_subscribers(names),
}
BAD_NAMES = {  # and what the text must say: the value (its beginning, where it is long) and the limit
    "empty": ("", ["empty", "''"]),
    "NUL": ("a\0b", ["NUL", r"'a\\x00b'"]),
    "only NUL": ("\0", ["NUL", r"'\\x00'"]),
    "surrogate": ("a\ud800", ["surrogate", r"'a\\ud800'"]),
    "64 bytes": ("x" * 64, ["63", "64", "'xxxxxxxx"]),
    "64 bytes, 32 letters": ("é" * 32, ["63", "64", "'éééé"]),
    "64 bytes, 16 letters": ("\U0001f600" * 16, ["63", "64", "'\U0001f600"]),
    "a million bytes": ("y" * 1_000_000, ["63", "1000000|1,000,000", "'yyyy"]),
}


@pytest.mark.parametrize("bad", BAD_NAMES)
@pytest.mark.parametrize("method", [*ON_ONE, *ON_MANY])
def test_invalid_channels(n: Notifier, method: str, bad: str) -> None:
    """Guarantee 12: refused wherever a name is taken, alone and in the company of good ones."""
    name, parts = BAD_NAMES[bad]
    if method in ON_ONE:
        refused(n, InvalidChannel, lambda: ON_ONE[method](n, name), *parts)
    else:
        for names in (name, [name], ["a", "empty", name], iter(["a", name, "empty"])):
            refused(n, InvalidChannel, partial(ON_MANY[method], n, names), *parts)


@pytest.mark.parametrize(
    "name", ["x", " ", "\n", "x" * 63, "é" * 31 + "x", "\U0001f600" * 15 + "xyz", "\x7f", "\ufeff"]
)
def test_names_at_the_limit_are_good(server: str, sender: Conn, name: str) -> None:
    """Guarantee 12: 63 bytes are not too many."""
    got: list[Any] = []
    with Notifier(server) as n:
        n.subscribe(1, name, lambda *a: got.append(a[1:3]))
        sender.execute("select pg_notify(%s, '1')", (name,))
        until(lambda: got == [(name, 1)])


@pytest.mark.parametrize("bad", [7, None, b"a", 1.5, ["a"], ("a", "b"), {"a"}], ids=repr)
@pytest.mark.parametrize("method", ON_ONE)
def test_one_channel_must_be_a_string(n: Notifier, method: str, bad: Any) -> None:
    """Guarantee 12: TypeError, and the text names the value."""
    refused(n, TypeError, lambda: ON_ONE[method](n, bad), re.escape(repr(bad)), "str")


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (7, "7"),
        (None, "None"),
        (1.5, "1.5"),
        (object, "object"),
        (b"a", "97|b'a'"),
        ([b"a"], "b'a'"),
        (["a", 7], "7"),
        (["a", None, "empty"], "None"),
        (["a", ["b"]], r"\['b'\]"),
        ([("a", "b")], r"\('a', 'b'\)"),
        ({7: "a"}, "7"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("method", ON_MANY)
def test_channels_must_be_strings(n: Notifier, method: str, bad: Any, named: str) -> None:
    """Guarantee 12: TypeError, and the text names the value."""
    refused(n, TypeError, lambda: ON_MANY[method](n, bad), named, "str")


@pytest.mark.parametrize("method", ON_MANY)
def test_an_iterable_that_fails(n: Notifier, method: str) -> None:
    """Guarantee 3: all or nothing; its own error comes through."""

    def names() -> Iterator[str]:
        yield "a"
        yield "empty"
        raise RuntimeError("on purpose")

    refused(n, RuntimeError, lambda: ON_MANY[method](n, names()), "on purpose")


WITH_ID: dict[str, Callable[[Notifier, Any], Any]] = {
    "subscribe": lambda n, id: n.subscribe(id, "a", print),
    "subscribe on a new channel": lambda n, id: n.subscribe(id, "new", print),
    "unsubscribe": lambda n, id: n.unsubscribe(id, "a"),
    "mute_subscriber": lambda n, id: n.mute_subscriber(id),
    "mute_subscriber on": lambda n, id: n.mute_subscriber(id, "a"),
    "unmute_subscriber": lambda n, id: n.unmute_subscriber(id),
    "unmute_subscriber on": lambda n, id: n.unmute_subscriber(id, ["a", "b"]),
}


@pytest.mark.parametrize("id", [[], {}, {1}, ["one"], (1, []), bytearray(b"x")], ids=repr)
@pytest.mark.parametrize("method", WITH_ID)
def test_an_id_must_be_hashable(n: Notifier, method: str, id: Any) -> None:
    """Guarantee 12: TypeError, and the text names the value."""
    refused(n, TypeError, lambda: WITH_ID[method](n, id), re.escape(repr(id)), "hashable")


@pytest.mark.parametrize("fn", [None, 7, "print", [print], NotImplemented], ids=repr)
@pytest.mark.parametrize("channel", ["a", "new", SYSCHAN])
def test_a_callback_must_be_callable(n: Notifier, channel: str, fn: Any) -> None:
    """Guarantee 12: TypeError, and the text names the value."""
    refused(n, TypeError, lambda: n.subscribe("one", channel, fn), re.escape(repr(fn)), "callable")


UNKNOWN: list[tuple[type[Exception], Callable[[Notifier], Any], list[str]]] = [
    (UnknownChannel, lambda n: n.mute_channels("nope"), ["'nope'"]),
    (UnknownChannel, lambda n: n.mute_channels(["a", "nope"]), ["'nope'"]),
    (UnknownChannel, lambda n: n.mute_channels(iter(["nope", "a"])), ["'nope'"]),
    (UnknownChannel, lambda n: n.mute_channels(SYSCHAN), [SYSCHAN]),
    (UnknownChannel, lambda n: n.unmute_channels("nope"), ["'nope'"]),
    (UnknownChannel, lambda n: n.unmute_channels(["muted", "nope"]), ["'nope'"]),
    (UnknownChannel, lambda n: n.mute_subscriber("one", "nope"), ["'nope'"]),
    (UnknownChannel, lambda n: n.mute_subscriber("one", ["a", "nope"]), ["'nope'"]),
    (UnknownChannel, lambda n: n.unmute_subscriber("two", ["a", "nope"]), ["'nope'"]),
    (UnknownSubscriber, lambda n: n.mute_subscriber("nobody"), ["'nobody'"]),
    (UnknownSubscriber, lambda n: n.mute_subscriber("nobody", "a"), ["'nobody'"]),
    (UnknownSubscriber, lambda n: n.unmute_subscriber(None), ["None"]),
    (UnknownSubscriber, lambda n: n.unmute_subscriber(("t", 1), ["a"]), [r"\('t', 1\)"]),
    (UnknownSubscriber, lambda n: n.mute_subscriber("two", ["a", "b"]), ["'two'", "'b'"]),
    (UnknownSubscriber, lambda n: n.mute_subscriber("one", "b"), ["'one'", "'b'"]),
    (UnknownSubscriber, lambda n: n.unmute_subscriber("two", ["a", "empty"]), ["'two'", "'empty'"]),
]


@pytest.mark.parametrize(("error", "call", "parts"), UNKNOWN)
def test_unknown_channels_and_subscribers(
    n: Notifier, error: type[Exception], call: Callable[[Notifier], Any], parts: list[str]
) -> None:
    """Guarantee 12: muting or unmuting what is not registered; the good ones among them keep their state."""
    refused(n, error, lambda: call(n), *parts)
    n.stop()
    before = n.channels(), n.subscribers()
    with pytest.raises(error):
        call(n)
    assert (n.channels(), n.subscribers()) == before


@pytest.mark.parametrize(
    ("payload", "error", "parts"),
    [
        ("x" * 8000, PayloadTooLong, ["8,?000", "7,?999"]),
        ("é" * 4000, PayloadTooLong, ["8,?000", "7,?999"]),
        ("\U0001f600" * 2000, PayloadTooLong, ["8,?000", "7,?999"]),
        ("x" * 100_000, PayloadTooLong, ["100,?000", "7,?999"]),
        (["x" * 7996], PayloadTooLong, ["8,?000", "7,?999"]),
        (b"x" * 7997, PayloadTooLong, ["8,?000", "7,?999"]),
        (object(), TypeError, ["object"]),
        ([frozenset()], TypeError, ["frozenset"]),
        (float("nan"), ValueError, ["nan"]),
        ("a\0b", ValueError, ["NUL"]),
        ("\ud800", ValueError, ["surrogate"]),
    ],
    ids=lambda value: f"{value!r:.12}",
)
def test_payloads(n: Notifier, payload: object, error: type[Exception], parts: list[str]) -> None:
    """Guarantees 7, 12 and 13: 8,000 bytes or more, counted in UTF-8 and after `encode`; what cannot be sent."""
    refused(n, error, lambda: n.notify("a", payload), *parts)


@pytest.mark.parametrize(
    "payload", ["x" * 7999, "é" * 3999 + "x", ["x" * 7995], b"x" * 7996], ids=lambda value: f"{value!r:.12}"
)
def test_the_longest_payloads_arrive(server: str, channel: str, payload: object) -> None:
    """Guarantee 12: 7,999 bytes are not too many."""
    got: list[Any] = []
    with Notifier(server) as n:
        n.subscribe(1, channel, lambda *a: got.append(a[2]))
        n.notify(channel, payload)
        until(lambda: got == [payload])


# -- no password anywhere ---------------------------------------------------------------------------------------

SECRET = "s3cr3tPa55"
MALFORMED: list[str | Mapping[str, Any]] = [
    f"host=localhost password={SECRET} nonsense",
    f"host=localhost password=two {SECRET}",
    f"host=localhost password='{SECRET}",
    f"host=localhost password='{SECRET}\\",
    f"host=localhost password={SECRET} port=x",
    f"host=localhost password={SECRET} nonsense=1",
    f"host=localhost passwort={SECRET}",
    f"password={SECRET} sslmode=nonsense",
    f"postgresql://user:{SECRET}@localhost:x/db",
    f"postgresql://user:{SECRET}@[::1/db",
    f"postgresql://user:{SECRET}@[]/db",
    f"postgresql://user:%zz{SECRET}@localhost/db",
    f"postgresql://user:{SECRET}%00@localhost/db",
    f"postgresql://user:{SECRET}%@localhost/db",
    f"postgresql://user:{SECRET}@localhost/db?nonsense",
    f"postgresql://user:{SECRET}@localhost/db?nonsense=1",
    f"postgresql://user:{SECRET}@localhost/db?a=b=c",
    f"postgresql://user:{SECRET}/x@localhost/db",
    f"postgresql://user:{SECRET}@localhost/db?port=x",
    f"postgresql://localhost/db?password={SECRET}&nonsense",
    f"postgresql://localhost/db?password={SECRET}%zz",
    f"postgresql://localhost/db?password=a={SECRET}",
    {"host": "localhost", "password": SECRET, "nonsense": 1},
    {"host": "localhost", "password": SECRET, "port": "x"},
    {"host": "localhost", "password": SECRET, "sslmode": "nonsense"},
    {"host": "localhost", "password": f"{SECRET}\0"},
]
UNREACHABLE: list[str | Mapping[str, Any]] = [
    f"host=127.0.0.1 port=1 user=u password={SECRET}",
    f"postgresql://u:{SECRET}@127.0.0.1:1/db",
    f"postgresql://u:{SECRET}@127.0.0.1:1,127.0.0.1:2/db?target_session_attrs=read-write",
    {"host": "127.0.0.1", "port": 1, "user": "u", "password": SECRET},
    {"host": "/nonexistent", "user": "u", "password": SECRET},
    {"host": "name.invalid", "user": "u", "password": SECRET},
]


def said(error: BaseException) -> str:
    """All that an error shows, to whoever prints, logs or inspects it."""
    return "\n".join([str(error), repr(error), repr(error.args), *traceback.format_exception(error)])


def logged(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join([caplog.text, *(f"{r.args!r} {r.exc_text}" for r in caplog.records)])


def without_password(text: str) -> bool:
    return SECRET not in text


@pytest.mark.parametrize("conf", [*MALFORMED, *UNREACHABLE], ids=lambda conf: str(conf).replace(SECRET, "..."))
@pytest.mark.parametrize("called", [False, True])
def test_a_password_is_not_in_the_error(
    caplog: pytest.LogCaptureFixture, conf: str | Mapping[str, Any], called: bool
) -> None:
    """Guarantee 2: malformed or unreachable; an error of psycopg's, and no text of it shows a password."""
    caplog.set_level(logging.DEBUG)
    before = dict(conf) if isinstance(conf, Mapping) else conf
    with pytest.raises(psycopg.Error) as caught:
        Notifier((lambda: conf) if called else conf)
    if conf in UNREACHABLE:
        assert isinstance(caught.value, psycopg.OperationalError)
    assert without_password(said(caught.value))
    assert without_password(logged(caplog))
    assert conf == before


def test_a_password_is_not_in_the_error_of_a_later_connection(
    server: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantees 2 and 13: `dbconf` is asked anew before every connection, and may be wrong then."""
    caplog.set_level(logging.DEBUG)
    confs: list[str | Mapping[str, Any]] = [server]
    with Notifier(lambda: confs[0]) as n:
        for confs[0] in MALFORMED:
            with pytest.raises(psycopg.Error) as caught:
                n.notify(channel)
            assert without_password(said(caught.value))
        assert n.is_running()
        n.stop()
        for confs[0] in MALFORMED:
            with pytest.raises(psycopg.Error) as caught:
                n.start()
            assert without_password(said(caught.value))
        assert without_password(str(n.status()))
        assert without_password(repr(n))
    assert without_password(logged(caplog))


@pytest.fixture(scope="module")
def guarded(server: str) -> Iterator[dict[str, Any]]:
    """A role for which the server wants its password: everything to connect with."""
    role = f"guarded_{uuid.uuid4().hex[:8]}"
    conf = {**conninfo_to_dict(server), "user": role, "password": SECRET}
    with psycopg.connect(server, autocommit=True) as conn:
        create = sql.SQL("create role {} login superuser password {}")
        conn.execute(create.format(sql.Identifier(role), sql.Literal(SECRET)))
        [(path,)] = conn.execute("show hba_file").fetchall()
        rules = Path(path)
        before = rules.read_text()
        kinds = ["host"] if os.name == "nt" else ["local", "host"]
        lines = [f"{kind} all {role} {'all ' if kind == 'host' else ''}scram-sha-256\n" for kind in kinds]
        try:
            rules.write_text("".join(lines) + before)
            conn.execute("select pg_reload_conf()")
            until(lambda: refuses({**conf, "password": "wrong"}))
            yield conf
        finally:
            rules.write_text(before)
            conn.execute("select pg_reload_conf()")
            conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def refuses(conf: Mapping[str, Any]) -> bool:
    try:
        psycopg.connect(**conf).close()
    except psycopg.OperationalError:
        return True
    return False


Shape = Callable[[dict[str, Any]], Any]
SHAPES: dict[str, Shape] = {
    "mapping": dict,
    "string": lambda conf: make_conninfo(**conf),
    "URI": lambda conf: (
        f"postgresql://{conf['user']}:{conf['password']}@/{conf['dbname']}?host={conf['host']}"
        + (f"&port={conf['port']}" if "port" in conf else "")
    ),
    "callable": lambda conf: lambda: conf,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_password_is_not_shown(guarded: dict[str, Any], shape: str, caplog: pytest.LogCaptureFixture) -> None:
    """Guarantee 2: the server refuses: `OperationalError`."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(psycopg.OperationalError) as caught:
        Notifier(SHAPES[shape]({**guarded, "password": f"{SECRET}x"}))
    assert without_password(said(caught.value))
    assert without_password(logged(caplog))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_password_is_not_shown_in_a_life(
    guarded: dict[str, Any], sender: Conn, channel: str, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee 2: connected, failing, and after the loss of the session."""
    caplog.set_level(logging.DEBUG)
    got: list[Any] = []

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    conf = SHAPES[shape](guarded)
    with Notifier(conf) as n:
        n.subscribe("events", SYSCHAN, lambda *a: got.append(a))
        n.subscribe("fails", channel, fail)
        n.notify(channel, 1)
        until(lambda: n.status()["failed"])
        shown = [repr(n), str(n), str(n.status()), str(n.channels())]
        sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
        until(lambda: n.status()["last_error"])
        shown += [repr(n), str(n), str(n.status())]
    shown += [repr(n), str(n.status()), str(got), logged(caplog)]
    assert without_password("\n".join(shown))
    assert "on purpose" in caplog.text
    if shape == "mapping":
        assert conf == guarded


@pytest.mark.parametrize(
    ("dbconf", "says"),
    [
        ("hunter22", "postgresql://user@host/database"),
        ("host=a hunter22", "missing = after"),
        ("postgresql://u:hunter22@h:port/x?hunter22", "postgresql://user@host/database"),
        ({"hots": "x", "password": "hunter22"}, 'dbconf: invalid connection option "hots"'),
        ({"host": "127.0.0.1", "port": 1, "password": "hunter22"}, "refused"),
        ({"host": "nowhere.invalid", "password": "hunter22"}, "nowhere.invalid"),
    ],
)
def test_a_dbconf_that_cannot_be_says_what_is_wrong(dbconf: Any, says: str) -> None:
    """Guarantee 2: without a password in it."""
    with pytest.raises(psycopg.Error) as caught:
        Notifier(dbconf)
    assert says in str(caught.value)
    assert "hunter22" not in str(caught.value)
    assert str(caught.value) == str(caught.value).strip()


def test_a_payload_too_long_says_what_to_send_instead(server: str, channel: str) -> None:
    """Guarantee 12."""
    with Notifier(server) as n, pytest.raises(PayloadTooLong, match=r"at most 7999 bytes .* not 8000; send"):
        n.notify(channel, "x" * 8000)
