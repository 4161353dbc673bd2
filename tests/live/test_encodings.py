"""Guarantees 5, 10, 12: databases whose encoding is not UTF-8."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conftest import until
from pgnotifier import Notifier

Conn = psycopg.Connection[Any]


def database(server: str, encoding: str) -> Iterator[str]:
    name = f"encoding_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as conn:
        create = sql.SQL("create database {} encoding {} template template0 locale 'C'")
        conn.execute(create.format(sql.Identifier(name), sql.Literal(encoding)))
        try:
            yield make_conninfo(server, dbname=name)
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def latin1(server: str) -> Iterator[str]:
    yield from database(server, "LATIN1")


@pytest.fixture
def sql_ascii(server: str) -> Iterator[str]:
    yield from database(server, "SQL_ASCII")


def pg_notify(conf: str, *sent: tuple[str, str]) -> None:
    """From a session that is not the library's."""
    with psycopg.connect(conf, autocommit=True, client_encoding="UTF8") as conn:
        for channel, payload in sent:
            conn.execute("select pg_notify(%s, %s)", (channel, payload))


def seen(n: Notifier) -> Any:
    status = n.status()
    return n.channels(), n.subscribers(), n.active_channels(), status["pid"], status["running"]


@pytest.mark.parametrize("name", ["é", "Ünï çödé", "é" * 31, "ÿ" * 31 + "x", 'é"; listen "ÿ', "ascii"])
def test_latin1_names_and_payloads(latin1: str, name: str) -> None:
    """Guarantee 12: exactly as given, in both directions."""
    got: list[Any] = []
    with Notifier(latin1) as n:
        n.subscribe("misread", "Ã©", lambda *a: got.append(a))  # the bytes of "é" in UTF-8, taken for LATIN1
        n.subscribe(1, name, lambda *a: got.append(a[1:3]))
        pg_notify(latin1, (name, "é"), (name, '{"é": "ÿ"}'))
        n.notify(name, "Ü")
        n.notify(name, {"ß": ("ñ",)})
        wanted = [(name, payload) for payload in ("é", {"é": "ÿ"}, "Ü", {"ß": ("ñ",)})]
        until(lambda: len(got) >= 4)
        assert got == wanted
        n.stop()
        n.start()
        n.notify(name, "é")
        until(lambda: len(got) >= 5)
        assert got == [*wanted, (name, "é")]


Fn = Callable[..., None]


def euro_subscribed(n: Notifier) -> None:
    n.subscribe("e", "€", print)


def euro_among_pending(n: Notifier) -> None:
    n.restart()


def euro_unmuted(n: Notifier) -> None:
    n.unmute_channels("€")


def all_unmuted(n: Notifier) -> None:
    n.unmute_channels()


def subscriber_unmuted(n: Notifier) -> None:
    n.unmute_subscriber("e")


def prepare_nothing(n: Notifier, fn: Fn) -> None:
    pass


def prepare_pending(n: Notifier, fn: Fn) -> None:
    n.subscribe("e", "€", fn, autorun=False)
    n.subscribe("e", "pending", fn, autorun=False)


def prepare_muted(n: Notifier, fn: Fn) -> None:
    n.add_channels(["€", "muted"])
    n.mute_channels(["€", "muted"])
    n.subscribe("e", "€", fn)
    n.subscribe("e", "muted", fn)


def prepare_muted_subscriber(n: Notifier, fn: Fn) -> None:
    n.subscribe("e", "muted", fn)
    n.subscribe("e", "€", fn, autorun=False)
    n.mute_subscriber("e")


@pytest.mark.parametrize(
    ("prepare", "refused"),
    [
        (prepare_nothing, euro_subscribed),
        (prepare_pending, euro_among_pending),
        (prepare_muted, euro_unmuted),
        (prepare_muted, all_unmuted),
        (prepare_muted_subscriber, subscriber_unmuted),
    ],
)
def test_latin1_refuses_the_euro_sign(
    latin1: str, prepare: Callable[[Notifier, Fn], None], refused: Callable[[Notifier], None]
) -> None:
    """Guarantees 5 and 12: the call raises, registry and session are as before, the rest goes on being heard."""
    got: list[Any] = []
    with Notifier(latin1) as n, psycopg.connect(latin1, autocommit=True) as conn:
        n.subscribe(1, "é", lambda *a: got.append(a[2]))
        prepare(n, lambda *a: got.append("heard what was refused"))
        before = seen(n)
        for i in range(20):
            conn.execute("select pg_notify('é', %s)", (str(2 * i),))
            with pytest.raises(psycopg.Error):
                refused(n)
            assert seen(n) == before
            conn.execute("select pg_notify('pending', ''), pg_notify('é', %s)", (str(2 * i + 1),))
        until(lambda: len(got) >= 40)
        assert got == list(range(40))

        n.remove_channels(["€", "é"])
        n.subscribe(2, "ÿ", lambda *a: got.append(a[1]))
        conn.execute("select pg_notify('ÿ', '')")
        until(lambda: got[40:] == ["ÿ"])
        assert n.status()["pid"] == before[3]


def test_latin1_refusals_under_traffic_lose_nothing(latin1: str) -> None:
    """Guarantee 5: nothing lost, nothing twice, whatever is refused meanwhile."""
    got: list[Any] = []
    done = threading.Event()
    sent = 0

    def write() -> None:
        nonlocal sent
        with psycopg.connect(latin1, autocommit=True) as conn:
            while not done.is_set():
                conn.execute(
                    "select pg_notify('é', i::text) from generate_series(%s::int, %s::int) i", (sent, sent + 99)
                )
                sent += 100

    with Notifier(latin1) as n:
        n.subscribe(1, "é", lambda *a: got.append(a[2]))
        writer = threading.Thread(target=write)
        writer.start()
        try:
            for i in range(40):
                with pytest.raises(psycopg.Error):
                    n.subscribe(i, f"€{i}", print)
                n.subscribe(2, f"ÿ{i % 3}", print)
                n.unsubscribe(2, f"ÿ{i % 3}")
        finally:
            done.set()
            writer.join()
        until(lambda: len(got) >= sent, 30)
        print(f"{sent} sent")
        assert got == list(range(sent))
        assert list(n.subscribers()) == [1]


@pytest.mark.parametrize(("channel", "payload"), [("€", ""), ("é", "€"), ("é", {"a": "€"}), ("日本", "日本")])
def test_latin1_refuses_to_send_the_euro_sign(latin1: str, channel: str, payload: object) -> None:
    """Guarantees 12 and 13: an error of the server's, and the next one is sent."""
    got: list[Any] = []
    with Notifier(latin1) as n:
        n.subscribe(1, "é", lambda *a: got.append(a[2]))
        before = seen(n)
        for i in range(3):
            with pytest.raises(psycopg.Error):
                n.notify(channel, payload)
            n.notify("é", i)
        until(lambda: len(got) >= 3)
        assert got == [0, 1, 2]
        assert seen(n) == before


@pytest.mark.parametrize("name", ["ascii", "é", "€", "日本語", "\U0001f600" * 15 + "xyz", 'a"b'])
def test_sql_ascii_names_and_payloads(sql_ascii: str, name: str) -> None:
    """Guarantees 10 and 12: what is valid UTF-8 passes as it is."""
    got: list[Any] = []
    with Notifier(sql_ascii) as n:
        pid = n.status()["pid"]
        n.subscribe(1, name, lambda *a: got.append(a[1:3]))
        pg_notify(sql_ascii, (name, "plain"), (name, "€ 日本 \U0001f600"), (name, '{"é": "€"}'))
        n.notify(name, "ÿ€")
        n.notify(name, {"日": ("本",)})
        wanted = [(name, payload) for payload in ("plain", "€ 日本 \U0001f600", {"é": "€"}, "ÿ€", {"日": ("本",)})]
        until(lambda: len(got) >= 5)
        assert got == wanted
        assert n.status()["pid"] == pid
        n.unsubscribe(1, name)
        assert n.active_channels() == []
        ended = threading.Event()
        n.subscribe("end", Notifier.SYSCHAN, lambda *a: ended.set())
        pg_notify(sql_ascii, (name, "x"), (Notifier.SYSCHAN, ""))
        assert ended.wait(10)
        assert got == wanted
