"""Following the primary, and refusing a standby (guarantee 10)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from conftest import until
from pgnotifier import Notifier
from pgnotifier.errors import CannotListen

from .conftest import until_reconnected
from .servers import Server
from .traffic import Stream, Traffic, assert_whole


@pytest.fixture
def primary() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def standby(primary: Server) -> Iterator[Server]:
    with primary.standby() as server:
        yield server


def both(first: Server, second: Server) -> str:
    hosts = f"host=127.0.0.1,127.0.0.1 port={first.port},{second.port}"
    return f"{hosts} user=postgres dbname=postgres target_session_attrs=read-write"


def test_follows_the_primary(primary: Server, standby: Server, stream: Stream) -> None:
    """Guarantee 10: the primary is stopped, the standby promoted; there and back again."""
    dsn = both(primary, standby)
    with Traffic(dsn, [stream.channel]) as traffic, Notifier(dsn, retry_delay=(0.01, 0.2)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        until(lambda: stream.last)
        pid = n.status()["pid"]
        primary.stop()
        until(lambda: not n.status()["connected"])
        standby.promote()
        until_reconnected(n, pid)
        assert standby.execute("select true from pg_stat_activity where pid = %s", [n.status()["pid"]])
        assert_whole(traffic, stream)
        assert {gap.reason for gap in stream.gaps()} == {"connection"}


def test_a_primary_that_becomes_a_standby(primary: Server, standby: Server, stream: Stream) -> None:
    """Guarantee 10: a switch-over in which the old primary comes back, and must not be used."""
    dsn = both(primary, standby)
    with Traffic(dsn, [stream.channel]) as traffic, Notifier(dsn, retry_delay=(0.01, 0.2)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        until(lambda: stream.last)
        pid = n.status()["pid"]
        primary.stop()
        (primary.data / "standby.signal").touch()
        primary.start()
        assert primary.execute("select pg_is_in_recovery()") == [(True,)]
        assert n.is_running()
        assert not n.status()["connected"]
        standby.promote()
        until_reconnected(n, pid)
        assert_whole(traffic, stream)


def test_a_lone_standby_is_refused(standby: Server) -> None:
    """Guarantee 10: `CannotListen`, which says what is wrong and what to do."""
    for attributes in ["", "target_session_attrs=any", "target_session_attrs=standby"]:
        with pytest.raises(CannotListen, match=r"(?s)standby.*primary.*target_session_attrs"):
            Notifier(f"{standby.dsn} {attributes}")
    assert standby.execute("select from pg_stat_activity where application_name = 'pgnotifier'") == []


def test_a_session_that_moves_to_a_standby(primary: Server, standby: Server, stream: Stream) -> None:
    """Guarantee 10: met while reconnecting it counts as a lost connection, and is tried again."""
    conf = {"dsn": primary.dsn}
    with Notifier(lambda: conf["dsn"], retry_delay=(0.01, 0.05)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        conf["dsn"] = standby.dsn
        primary.terminate(n.status()["pid"])
        until(lambda: "CannotListen" in str(n.status()["last_error"]))
        assert n.is_running()
        standby.promote()
        with Traffic(standby.dsn, [stream.channel]) as traffic:
            assert_whole(traffic, stream)
