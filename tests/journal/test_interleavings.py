"""Each interleaving of docs/internals.md, forced (guarantee 18)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from conftest import until
from faults.proxy import Proxy
from pgnotifier import Notifier
from pgnotifier.journal import Consumer, Journal, upkeep
from pgnotifier.journal.sessions import Session

from .reading import PUBLISH, Reader, effects, run

Conn = psycopg.Connection[Any]
NOW = timedelta(0)
LOOKED = "select 1 from pg_stat_activity where datname = current_database() and query like '%skip locked%from%'"
CONSUMING = "select pid from pg_stat_activity where datname = current_database() and state = 'idle in transaction'"


def waits_for_a_lock(dsn: str) -> bool:
    query = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    return bool(run(dsn, query))


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


def test_a_transaction_commits_after_those_with_greater_ids(
    journal: Journal, conn: Conn, reader: Reader, consume: Any
) -> None:
    consume()
    conn.execute(PUBLISH, ["slow"])
    journal.publish("orders", "quick")
    reader.has("quick")
    conn.commit()
    reader.has("quick", "slow")
    assert reader.entries[0].id > reader.entries[1].id


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("is_lost", [False, True])
def test_it_commits_in_the_middle_of_an_unfinished_slice(
    journal: Journal, dsn: str, conn: Conn, reader: Reader, consume: Any, batch: int, is_lost: bool
) -> None:
    """The slice is finished as it was, also by another session if its first part is kept."""
    reached, go = reader.hold(2)
    first, free = reader.hold(0)
    consume(batch=batch)
    journal.publish("orders", 0)
    assert first.wait(10)
    conn.execute(PUBLISH, ["slow"])
    for number in (1, 2, 3):
        journal.publish("orders", number)
    free.set()
    assert reached.wait(10)
    conn.commit()
    if is_lost:
        [(pid,)] = run(dsn, CONSUMING)
        run(dsn, "select pg_terminate_backend(%s, 5000)", pid)
    go.set()
    if not is_lost:
        reader.has(0, 1, 2, 3, "slow")
    elif batch == 1:
        reader.has(0, 1, 2, 2, 3, "slow")
    else:  # none of the slice was kept: another one is taken
        reader.has(0, 1, 2, "slow", 1, 2, 3)
    until(lambda: sorted(effects(dsn)) == ["0", "1", "2", "3", "slow"])


@pytest.mark.parametrize("start", ["now", "beginning"])
def test_trimming_between_the_two_steps_of_registering(
    journal: Journal, dsn: str, reader: Reader, consume: Any, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries stay from the moment on at which the name is committed."""
    journal.publish("orders", "before")
    ask, deleted = Session.ask, list[int]()

    def trim_first(self: Session, query: Any) -> list[Any]:
        if b"pg_current_snapshot() end" in query[0] and not deleted:
            journal.publish("orders", "meanwhile")
            deleted.append(journal.trim(NOW))
        return ask(self, query)

    monkeypatch.setattr(Session, "ask", trim_first)
    consume(start=start)
    journal.publish("orders", "after")
    assert deleted == [0]
    reader.has(*(["before", "meanwhile"] if start == "beginning" else []), "after")
    assert not reader.gaps


def test_registering_while_trimming_that_did_not_see_it_is_under_way(
    journal: Journal, conn: Conn, reader: Reader, consume: Any
) -> None:
    journal.publish("orders", "old")
    assert conn.execute(*next(upkeep.trim("pgnotifier", NOW))).fetchall()[0][0] == 1  # deleted
    consume()
    journal.publish("orders", "new")
    conn.commit()
    reader.has("new")
    assert not reader.gaps


@pytest.mark.parametrize("batch", [1, 100])
def test_eviction_while_a_batch_is_under_way(
    journal: Journal, dsn: str, reader: Reader, consume: Any, batch: int
) -> None:
    """Trimming waits for the batch: nothing is both delivered and counted as lost."""
    journal.publish("others", "nobody's")
    reached, go = reader.hold(1)
    with psycopg.connect(dsn) as conn:
        for number in (1, 2, 3):
            conn.execute(PUBLISH, [number])
    consume(batch=batch, start="beginning")
    assert reached.wait(10)
    thread, deleted = in_thread(lambda: journal.trim(NOW, evict=True))
    until(lambda: waits_for_a_lock(dsn))
    go.set()
    thread.join()
    assert deleted == [4]
    journal.publish("orders", "next")
    if batch == 1:
        reader.has(1, "next")
        [gap] = reader.gaps
        assert (gap.reason, gap.dropped, gap.error) == ("trimmed", 2, None)
        assert gap.since < gap.until
    else:
        reader.has(1, 2, 3, "next")
        assert not reader.gaps


def test_a_consumer_that_registers_while_eviction_waits_for_another(
    journal: Journal, dsn: str, reader: Reader, consume: Any, make_notifier: Any
) -> None:
    """Its entries stay, or are told as lost; never both delivered and told."""
    for number in (1, 2, 3):
        journal.publish("orders", number)
    reached, go = reader.hold(1)
    consume(start="beginning", batch=1)
    assert reached.wait(10)
    thread, _ = in_thread(lambda: journal.trim(NOW, evict=True))
    until(lambda: waits_for_a_lock(dsn))
    late = Reader(writes=False)
    late_reached, late_go = late.hold(1)
    consume(late, name="late", start="beginning", on_gap=late.on_gap)
    assert late_reached.wait(10)
    go.set()
    until(lambda: not thread.is_alive() or waits_for_a_lock(dsn))
    late_go.set()
    thread.join()
    journal.publish("orders", "end")
    until(lambda: "end" in late.payloads and "end" in reader.payloads)
    lost = sum(gap.dropped or 0 for gap in late.gaps)
    assert len(set(late.payloads) - {"end"}) + lost == 3


def test_eviction_is_told_at_once(journal: Journal, dsn: str, reader: Reader, consume: Any) -> None:
    """Nothing needs to be published for it. What was not evicted still comes."""
    reached, go = reader.hold("held")
    consume(batch=1)
    journal.publish("orders", "held")
    assert reached.wait(10)
    for number in range(3):
        journal.publish("orders", number)
    run(dsn, "update pgnotifier.journal set at = at - interval '1 day' where payload = '1'")
    thread, deleted = in_thread(lambda: journal.trim(timedelta(hours=1), evict=True))
    until(lambda: waits_for_a_lock(dsn))
    go.set()
    thread.join()
    until(lambda: reader.gaps)
    reader.has("held", 0, 2)
    assert deleted == [1]
    assert [(gap.reason, gap.dropped) for gap in reader.gaps] == [("trimmed", 1)]


def test_a_channel_is_added_while_the_old_process_is_in_a_batch(
    journal: Journal, dsn: str, reader: Reader, consume: Any, make_notifier: Any
) -> None:
    """The new one starts at the registration, and is told; nothing of the old ones is missed or comes twice."""
    reached, go = reader.hold(1)
    old = consume()
    journal.publish("orders", 1)
    journal.publish("returns", "too early")
    assert reached.wait(10)
    new = consume(channels=["orders", "returns"], notifier=make_notifier())
    with psycopg.connect(dsn) as conn:
        conn.execute(PUBLISH, [2])
        journal.publish("returns", 3, conn)
    assert not new.status()["active"]
    go.set()
    reader.has(1, 2, 3)
    assert [(gap.channel, gap.reason, gap.dropped) for gap in reader.gaps] == [("returns", "channels", None)]
    assert (old.status()["active"], new.status()["active"]) == (False, True)
    new.stop()
    journal.publish("orders", 4)
    journal.publish("returns", "not the old one's")
    reader.has(1, 2, 3, 4)
    assert effects(dsn) == ["1", "2", "3", "4"]


def test_an_idle_process_with_the_older_list_gives_way(
    journal: Journal, reader: Reader, consume: Any, make_notifier: Any
) -> None:
    old = consume()
    until(lambda: old.status()["active"])
    new = consume(channels=["orders", "returns"], notifier=make_notifier())
    journal.publish("returns", 1)
    reader.has(1)
    assert new.status()["active"]


def test_somebody_locks_the_position(journal: Journal, conn: Conn, reader: Reader, consume: Any) -> None:
    """The consumer waits without a transaction, and is not failing."""
    consumer = consume()
    until(lambda: consumer.status()["active"])
    conn.execute("select 1 from pgnotifier.consumer for update")
    journal.publish("orders", 1)
    until(lambda: not consumer.status()["active"] or conn.execute(LOOKED).fetchall())
    assert (consumer.status()["active"], reader.entries) == (True, [])
    conn.commit()
    reader.has(1)
    assert consumer.status()["failed"] == 0


@pytest.mark.parametrize("is_committed", [True, False])
def test_the_answer_to_a_commit_is_lost(
    journal: Journal, server: str, dsn: str, reader: Reader, consume: Any, is_committed: bool
) -> None:
    """Committed or not, the effect is there once, for the position is read anew."""
    info = psycopg.conninfo.conninfo_to_dict(dsn)
    run(dsn, "create function wait() returns trigger language plpgsql as $$ begin "
        "perform pg_advisory_xact_lock(42); return null; end $$")  # fmt: skip
    run(dsn, "create constraint trigger late after insert on effect deferrable initially deferred "
        "for each row execute function wait()")  # fmt: skip
    with Proxy((str(info["host"]), int(str(info["port"])))) as proxy, psycopg.connect(dsn, autocommit=True) as lock:
        through = psycopg.conninfo.make_conninfo(dsn, host="127.0.0.1", port=proxy.port)
        with Notifier(through, retry_delay=(0.01, 0.1)) as n:
            lock.execute("select pg_advisory_lock(42)")
            consumer = consume(notifier=n, journal=Journal(through))
            journal.publish("orders", 1)
            until(lambda: waits_for_a_lock(dsn))
            [(pid,)] = run(dsn, "select pid from pg_stat_activity where wait_event = 'advisory'")
            proxy.deafen(to_server=False)
            if not is_committed:
                run(dsn, "select pg_terminate_backend(%s, 5000)", pid)
            lock.execute("select pg_advisory_unlock(42)")
            until(lambda: effects(dsn) == (["1"] if is_committed else []))
            proxy.reset()
            proxy.heal()
            journal.publish("orders", 2)
            reader.has(*([1] if is_committed else [1, 1]), 2)
            until(lambda: effects(dsn) == ["1", "2"])
            assert consumer.status()["failed"] == 0
            consumer.stop()


def test_the_callbacks_own_entry_is_delivered(
    journal: Journal, dsn: str, reader: Reader, consume: Callable[..., Consumer]
) -> None:
    """Also if other transactions commit in between, and in one batch with others."""

    def answer(entry: Any, conn: Conn) -> None:
        reader(entry, conn)
        if entry.payload < 30:
            journal.publish("orders", entry.payload + 10, conn)
            journal.publish("noise", "")

    consume(answer)
    with psycopg.connect(dsn) as conn:
        for number in range(3):
            conn.execute(PUBLISH, [number])
    until(lambda: len(reader.entries) == 12)
    assert sorted(reader.payloads) == [0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32]
    assert [reader.payloads.index(p) < reader.payloads.index(p + 10) for p in reader.payloads if p < 30]
