"""Guarantee 14 without a server: what `listen` shows of gaps and events, and what is said about errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from pgnotifier import Gap
from pgnotifier.cli import advice, commands
from pgnotifier.cli.terminal import Terminal, printable
from pgnotifier.cli.views import Json, Plain, View

SINCE = datetime(2026, 1, 5, 12, 0, 0, 500_000, tzinfo=timezone.utc)
LOST = Gap("orders", "connection", SINCE, SINCE + timedelta(seconds=3), None, "server closed\nthe connection")
LATE = Gap("customers", "connection", SINCE, SINCE + timedelta(seconds=4), None, "server closed\nthe connection")
FULL = Gap("orders", "overflow", SINCE, SINCE + timedelta(seconds=3), 1234)
EVENTS: list[dict[str, Any]] = [
    {"event": "disconnected", "error": "server closed\nthe connection"},
    {"event": "reconnected", "down_for": 3.04, "attempts": 4},
    {"event": "channel_refused", "channel": "x", "error": "no"},
]


class FakeNotifier:
    """What `listen` uses of a Notifier; `start` plays `script(heard, listening)` in the caller's thread."""

    SYSCHAN = "PGNOTIFIER"

    def __init__(self, script: Callable[[Any, Any], None]) -> None:
        self._script = script
        self.channels: list[str] = []

    def __call__(self, dsn: str, *, decode: Callable[[str], Any]) -> FakeNotifier:
        self.decode = decode
        return self

    def __enter__(self) -> FakeNotifier:
        return self

    def __exit__(self, *exc: object) -> None:
        self._heard("listen", self.SYSCHAN, {"event": "stopped"}, 0)

    def subscribe(self, id: str, channel: str, fn: Any, autorun: bool = True, *, on_listen: Any = None) -> None:
        assert (id, autorun) == ("listen", False)
        self.channels.append(channel)
        self._heard, self._listening = fn, on_listen or self._listening

    def start(self) -> None:
        self._script(
            lambda channel, payload, pid=7: self._heard(
                "listen", channel, self.decode(payload) if isinstance(payload, str) else payload, pid
            ),
            lambda channel, gap: self._listening("listen", channel, gap),
        )


def shown(
    capsys: pytest.CaptureFixture[str], view: View, script: Callable[[Any, Any], None], **options: Any
) -> tuple[list[str], list[str]]:
    notifier = FakeNotifier(script)
    channels = options.pop("channels", ["orders"])
    commands.listen("", channels, view, Terminal(), quiet=True, notifier=notifier, **options)
    assert notifier.channels == [*dict.fromkeys(channels), "PGNOTIFIER"][: len(set(channels) | {"PGNOTIFIER"})]
    out = capsys.readouterr()
    return out.out.splitlines(), out.err.splitlines()


def script(heard: Any, listening: Any) -> None:
    """The notifier calls `on_listen` before it reports that it is connected again."""
    listening("orders", None)
    heard("PGNOTIFIER", {"event": "connected"}, 0)
    heard("orders", "1")
    lost, again, refused = EVENTS
    heard("PGNOTIFIER", lost, 0)
    heard("PGNOTIFIER", '{"event": "disconnected"}')  # sent by somebody: not asked for, and no event
    listening("customers", LATE)
    listening("orders", LOST)
    heard("PGNOTIFIER", again, 0)
    heard("PGNOTIFIER", refused, 0)
    listening("orders", FULL)
    heard("orders", "2")
    heard("orders", "3")


def test_json_keeps_gaps_and_events_in_their_place(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = shown(capsys, Json(), script, count=2, channels=["orders", "customers"])
    got = [json.loads(line) for line in out]
    assert err == []
    lost, again, refused = EVENTS
    kinds = [lost["event"], again["event"], "gap", refused["event"], "gap"]
    assert [x.get("event", x.get("payload")) for x in got] == [1, *kinds, 2]
    for event, line in zip(EVENTS, [got[1], got[2], got[4]], strict=True):
        assert {k: v for k, v in line.items() if k != "time"} == event
    assert {k: v for k, v in got[3].items() if k != "time"} == {
        "event": "gap",
        "channels": ["customers", "orders"],
        "reason": "connection",
        "since": "2026-01-05T12:00:00.500000+00:00",
        "until": "2026-01-05T12:00:04.500000+00:00",
        "dropped": None,
        "error": "server closed\nthe connection",
    }
    assert (got[5]["channels"], got[5]["dropped"]) == (["orders"], 1234)


def test_plain_keeps_gaps_and_events_off_the_stream(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = shown(capsys, Plain(local_time=False), script, count=3, channels=["orders", "customers"])
    assert [line.split("  ")[1:] for line in out] == [["orders", "7", str(n)] for n in (1, 2, 3)]
    lost, again, gap, refused, full = [line.split("  ", 1)[1] for line in err]
    assert lost == "connection lost, connecting again: server closed the connection"
    assert again == "connected again after 3.0 s, attempt 4"
    assert refused == "channel_refused channel=x error=no"
    assert gap.startswith("gap on customers, orders: notifications may have been missed between ")
    assert " and " + (SINCE + timedelta(seconds=4)).astimezone().strftime("%H:%M:%S.500") in gap
    assert full.startswith("gap on orders: 1,234 notifications were missed between ")


def test_a_gap_comes_before_the_notification_that_follows_it(capsys: pytest.CaptureFixture[str]) -> None:
    def late(heard: Any, listening: Any) -> None:
        listening("orders", LOST)
        heard("orders", "1")
        heard("PGNOTIFIER", EVENTS[1], 0)
        heard("orders", "2")

    out, _ = shown(capsys, Json(), late, count=2)
    assert [x.get("event", x.get("payload")) for x in map(json.loads, out)] == ["gap", 1, "reconnected", 2]


def test_many_channels_are_counted() -> None:
    gaps = [Gap(f"channel_{n:02}", "connection", SINCE, SINCE, None) for n in range(20)]
    assert "gap on 20 channels: notifications" in Plain(local_time=False).gap(SINCE, gaps)[0][0]


def test_the_system_channel_itself_may_be_listened_to(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = shown(capsys, Json(), script, count=1, channels=["PGNOTIFIER"])
    assert json.loads(out[-1])["payload"] == {"event": "disconnected"}
    assert json.loads(out[-1])["pid"] == 7


def test_a_notifier_that_stops_by_itself_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def stops(heard: Any, listening: Any) -> None:
        heard("orders", "1")
        heard("PGNOTIFIER", {"event": "stopped"}, 0)

    with pytest.raises(advice.CommandFailed):
        shown(capsys, Json(), stops)
    assert json.loads(capsys.readouterr().out)["payload"] == 1


def test_a_full_feed_holds_the_worker_up_until_it_is_closed() -> None:
    feed = commands.Feed(limit=2)
    done = threading.Event()

    def work() -> None:
        for n in range(5):
            feed.put([(str(n), "")], True)
        done.set()

    threading.Thread(target=work, daemon=True).start()
    taken: list[str] = []
    while len(taken) < 3:
        batch = feed.take()
        assert 1 <= len(batch) <= 2
        taken += [line[0][0] for line, _ in batch]
    assert taken == ["0", "1", "2", "3"][: len(taken)]
    feed.close()
    assert done.wait(10)


def test_printable() -> None:
    assert printable("é 😀 \\") == "é 😀 \\"
    assert printable("a\x1b[2J\r\n\t\u202e\u2028\ud800") == r"a\x1b[2J\r\n\t\u202e\u2028\ud800"


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('connection to server at "h", port 1 failed: Connection refused\n\tIs the server running?', "running?"),
        ("failed to resolve host 'h': [Errno -2] Name or service not known", "host's name"),
        ('FATAL:  password authentication failed for user "u"', "PGPASSWORD"),
        ("fe_sendauth: no password supplied", "~/.pgpass"),
        ('FATAL:  database "d" does not exist', "createdb"),
        ('FATAL:  role "r" does not exist', "createuser"),
        ('FATAL:  no pg_hba.conf entry for host "h", user "u", no encryption', "sslmode=require"),
        ('FATAL:  no pg_hba.conf entry for host "h", user "u"', "let this user in"),
        ("FATAL:  unsupported startup parameter: options", "pool_mode=session"),
        ("server does not support SSL, but SSL was required", "sslmode=prefer"),
        ("SSL error: certificate verify failed", "sslrootcert"),
        ("FATAL:  sorry, too many clients already", "max_connections"),
        ("FATAL:  the database system is starting up", "in a moment"),
        ("session is read-only", "target_session_attrs=read-write"),
        ("connection timeout expired", "firewall"),
        ("connect_timeout must be whole seconds, not 'x'", "connect_timeout=10"),
        ('definition of service "x" not found', "PGSERVICEFILE"),
        ('character with byte sequence 0xd0 0xb4 has no equivalent in encoding "LATIN1"', "UTF8 database"),
        ("received invalid response to SSL negotiation: H", "is it PostgreSQL"),
        ("etwas ganz anderes", "check --dsn"),
    ],
)
def test_every_error_says_what_to_do(text: str, remedy: str) -> None:
    line = advice.line(psycopg.OperationalError(f"connection failed: {text}"))
    assert remedy in line
    assert "\n" not in line
    assert line.count("server running?") <= 1


def test_no_password_even_where_the_error_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "from-env")
    error = psycopg.OperationalError("no host 'from-dsn' or 'from-env'")
    assert "from" not in advice.line(error, "password=from-dsn")
