"""Eviction, and a journal that stands in another cluster: a gap, never silence (guarantee 18)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from conftest import until
from faults.servers import BIN, Server
from pgnotifier import Notifier
from pgnotifier.journal import Journal

from .reading import PUBLISH, Reader, effects, run


def test_eviction_while_away(journal: Journal, dsn: str, reader: Reader, consume: Any) -> None:
    """Per channel, with the count and the time; what is no older stays."""
    consume(channels=["orders", "returns", "quiet"]).stop()
    for channel, payload in [("orders", 1), ("orders", 2), ("returns", 3), ("others", 4)]:
        journal.publish(channel, payload)
    run(dsn, "update pgnotifier.journal set at = at - interval '1 hour'")
    journal.publish("orders", 5)
    assert journal.trim(timedelta(minutes=1)) == 1  # nobody's
    assert journal.status()["consumers"][0]["lag"] == 4
    assert journal.trim(timedelta(minutes=1), evict=True) == 3
    assert journal.trim(timedelta(minutes=1), evict=True) == 0
    assert journal.status()["consumers"][0]["gaps"] == ["trimmed"]
    consume(channels=["orders", "returns", "quiet"])
    reader.has(5)
    assert [(gap.channel, gap.reason, gap.dropped) for gap in reader.gaps] == [
        ("orders", "trimmed", 2),
        ("returns", "trimmed", 1),
    ]
    hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    assert all(abs(gap.until - hour_ago) < timedelta(minutes=1) for gap in reader.gaps)


def test_evictions_add_up_until_they_are_told(journal: Journal, dsn: str, reader: Reader, consume: Any) -> None:
    consume().stop()
    for number in range(3):
        journal.publish("orders", number)
        journal.trim(timedelta(0), evict=True)
    consume()
    until(lambda: reader.gaps)
    assert [gap.dropped for gap in reader.gaps] == [3]
    journal.publish("orders", 4)
    reader.has(4)
    assert len(reader.gaps) == 1


def test_many_thousands_are_trimmed_in_steps(journal: Journal, dsn: str, reader: Reader, consume: Any) -> None:
    consume(channels="rare")
    query = "insert into pgnotifier.journal (channel) select case g % 7000 when 0 then 'rare' else 'orders' end"
    run(dsn, f"{query} from generate_series(1, 14000) g")
    until(lambda: len(reader.entries) == 2)
    until(lambda: journal.status()["consumers"][0]["lag"] == 0)
    assert journal.trim(timedelta(0)) == 14000


def test_the_active_consumer_trims(
    journal: Journal, dsn: str, reader: Reader, consume: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every consumer has had, and nothing of what one is owed."""
    monkeypatch.setattr("pgnotifier.journal.consumer.TRIM_EVERY", 0.1)
    journal.install(keep=timedelta(0))
    consume(name="absent", channels="returns").stop()
    consume(channels=["orders", "returns"])
    for channel in ["orders", "returns", "others"]:
        journal.publish(channel, channel)
    reader.has("orders", "returns")
    until(lambda: journal.status()["entries"] == 1)
    assert run(dsn, "select payload from pgnotifier.journal") == [("returns",)]
    assert journal.status()["consumers"][0]["held"] == 1


def advance(dsn: str, xid: int) -> None:
    """Use ids of transactions up to that one."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        while conn.execute("select pg_current_xact_id()::text::int").fetchall()[0][0] <= xid:
            pass


def leave_behind(
    journal: Journal, dsn: str, conn: psycopg.Connection[Any], consume: Callable[..., Any], reader: Reader
) -> None:
    """A consumer that has had 1 and 2, not a transaction that was open meanwhile, and not 3 and 4."""
    consumer = consume()
    conn.execute(PUBLISH, ["open"])
    journal.publish("orders", 1)
    journal.publish("orders", 2)
    reader.has(1, 2)
    until(lambda: effects(dsn) == ["1", "2"])
    consumer.stop()
    conn.commit()
    journal.publish("orders", 3)
    journal.publish("orders", 4)


def test_a_dump_restored_into_another_cluster(
    journal: Journal, dsn: str, conn: psycopg.Connection[Any], consume: Any, reader: Reader
) -> None:
    """Whose transactions have smaller ids. What is published there before a consumer comes is delivered too."""
    with Server() as elsewhere:
        [(youngest,)] = elsewhere.execute("select pg_current_xact_id()::text::int")
        advance(dsn, youngest + 1000)
        leave_behind(journal, dsn, conn, consume, reader)
        dump = subprocess.run([BIN / "pg_dump", "-d", dsn], check=True, capture_output=True).stdout
        psql: list[Any] = [BIN / "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", elsewhere.dsn]
        subprocess.run(psql, check=True, input=dump, stdout=subprocess.DEVNULL)
        moved = Journal(elsewhere.dsn)
        moved.publish("orders", 5)
        assert moved.status()["restored"]
        with Notifier(elsewhere.dsn) as n, moved:
            again = Reader()
            with moved.consume(n, "mailer", "orders", again, on_gap=again.on_gap):
                again.has(3, 4, 5)
                moved.publish("orders", 6)
                again.has(3, 4, 5, 6)
            [gap] = again.gaps
            assert (gap.reason, gap.dropped) == ("restored", None)
            assert not moved.status()["restored"]
            assert moved.trim(timedelta(0)) == 7
        assert effects(elsewhere.dsn) == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cluster_whose_ids_are_far_behind(
    journal: Journal,
    dsn: str,
    conn: psycopg.Connection[Any],
    consume: Any,
    make_notifier: Any,
    reader: Reader,
    processes: int,
) -> None:
    """Several processes that find it so at the same time; a transaction that is open meanwhile."""
    leave_behind(journal, dsn, conn, consume, reader)
    run(dsn, "update pgnotifier.journal set xid = '99999999999'")
    run(dsn, "update pgnotifier.consumer set since = '99999999990:99999999999:'")
    run(dsn, "update pgnotifier.meta set system = 1")
    conn.execute(PUBLISH, ["open there"])
    again = Reader()
    for _ in range(processes):
        consume(again, notifier=make_notifier(), on_gap=again.on_gap)
    again.has(3, 4)
    conn.commit()
    again.has(3, 4, "open there")
    assert [gap.reason for gap in again.gaps] == ["restored"]


def test_an_idle_channel_is_told_of_a_restore_too(journal: Journal, dsn: str, consume: Any, reader: Reader) -> None:
    consume(channels=["orders", "returns"]).stop()
    run(dsn, "update pgnotifier.meta set system = 1")
    consume(channels=["orders", "returns"])
    until(lambda: len(reader.gaps) == 2)
    assert {(gap.channel, gap.reason) for gap in reader.gaps} == {("orders", "restored"), ("returns", "restored")}
    journal.publish("returns", 1)
    reader.has(1)


def test_a_standby_is_refused(journal: Journal, reader: Reader) -> None:
    """And so is trimming there."""
    with Server() as primary, Journal(primary.dsn) as there:
        there.install()
        with primary.standby() as standby, Journal(standby.dsn) as journal, Notifier(primary.dsn) as n:
            until(lambda: standby.execute("select to_regclass('pgnotifier.journal') is not null") == [(True,)])
            for refused in (
                lambda: journal.consume(n, "mailer", "orders", reader),
                lambda: journal.trim(timedelta(0)),
            ):
                with pytest.raises(psycopg.OperationalError, match="connect to the primary"):
                    refused()
