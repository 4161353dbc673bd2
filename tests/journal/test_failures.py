"""A callback that fails: everything is rolled back, and nothing overtakes its entry (guarantee 18)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier
from pgnotifier.journal import Entry, Journal
from pgnotifier.journal import consumer as consumer_module

from .reading import PUBLISH, Reader, effects, run, write

Conn = psycopg.Connection[Any]


def publish_at_once(dsn: str, *payloads: object) -> None:
    """So that they are one slice."""
    with psycopg.connect(dsn) as conn:
        for payload in payloads:
            conn.execute(PUBLISH, [payload])


@pytest.fixture
def events(n: Notifier) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    n.subscribe("watch", Notifier.SYSCHAN, lambda _id, _channel, event, _pid: found.append(event))
    return found


def failing(reader: Reader, payload: object, times: float, error: BaseException) -> Callable[[Entry, Conn], None]:
    """The reader, which raises `error` after its effect, so many times."""

    def call(entry: Entry, conn: Conn) -> None:
        reader(entry, conn)
        if entry.payload == payload and reader.payloads.count(payload) <= times:
            raise error

    return call


def test_an_entry_that_fails_is_tried_again_with_backoff(
    journal: Journal, dsn: str, make_notifier: Any, reader: Reader, consume: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Those before it are kept one by one, those after it wait, also what commits later with a smaller id."""
    n = Notifier(dsn, retry_delay=(0.2, 0.2))
    found: list[dict[str, Any]] = []
    n.subscribe("watch", Notifier.SYSCHAN, lambda _id, _channel, event, _pid: found.append(event))
    with n, psycopg.connect(dsn) as late:
        consumer = consume(failing(reader, 3, 4, ValueError("no")), notifier=n)
        late.execute(PUBLISH, ["late"])
        publish_at_once(dsn, 1, 2, 3, 4)
        until(lambda: effects(dsn) == ["1", "2"])
        late.commit()
        began = time.monotonic()
        until(lambda: effects(dsn) == ["1", "2", "3", "4", "late"])
        assert 0.2 < time.monotonic() - began < 5
        until(lambda: consumer.status()["delivered"] == 5)
        assert reader.payloads[-3:] == [3, 4, "late"]
        status = consumer.status()
        assert (status["delivered"], status["failed"], status["skipped"]) == (5, 4, 0)
        assert status["last_error"] == "ValueError: no"
        failed = [event for event in found if event["event"] == "consumer_failed"]
        assert [event["tries"] for event in failed] == [1, 2, 3, 4]
        assert (failed[0]["name"], failed[0]["channel"], failed[0]["error"]) == ("mailer", "orders", "ValueError: no")
        assert failed[0]["id"] == reader.entries[2].id
        assert "entry" in caplog.text
        assert "Traceback" in caplog.text
        consumer.stop()


def test_skip_gives_up_after_five_tries(journal: Journal, dsn: str, reader: Reader, consume: Any) -> None:
    consumer = consume(failing(reader, 2, 99, ValueError()), on_error="skip")
    publish_at_once(dsn, 1, 2, 3)
    until(lambda: effects(dsn) == ["1", "3"])
    assert reader.payloads.count(2) == 5
    until(lambda: consumer.status()["delivered"] == 2)
    assert (consumer.status()["failed"], consumer.status()["skipped"]) == (5, 1)
    journal.publish("orders", 4)
    until(lambda: effects(dsn) == ["1", "3", "4"])


@pytest.mark.parametrize("batch", [1, 100])
def test_a_callable_decides(journal: Journal, dsn: str, reader: Reader, consume: Any, batch: int) -> None:
    """It is asked with the decoded entry; one that raises is logged, and the entry is tried again."""
    asked: list[tuple[Any, str, int]] = []

    def decide(entry: Entry, error: BaseException, tries: int) -> bool:
        asked.append((entry.payload, str(error), tries))
        if tries == 2:
            raise RuntimeError("cannot decide")
        return tries == 3

    consume(failing(reader, {"n": 1}, 99, ValueError("no")), on_error=decide, batch=batch)
    publish_at_once(dsn, 0, '{"n": 1}', 2)
    until(lambda: effects(dsn) == ["0", "2"])
    assert asked == [({"n": 1}, "no", tries) for tries in (1, 2, 3)]


def swallow(entry: Entry, conn: Conn) -> None:
    try:
        conn.execute("select 1 / 0")
    except psycopg.Error:
        pass


def end(statements: str) -> Callable[[Entry, Conn], None]:
    def call(entry: Entry, conn: Conn) -> None:
        for statement in statements.split(";"):
            conn.execute(statement.encode())

    return call


OPEN = ExitStack()
BAD: dict[str, tuple[Callable[[Entry, Conn], Any], str]] = {
    "swallowed": (swallow, "InFailedSqlTransaction"),
    "commits": (end("commit"), "ended the transaction"),
    "rolls back": (end("rollback"), "ended the transaction"),
    "commits and begins": (end("commit;begin"), "ended the transaction"),
    "rolls back and begins": (end("rollback;begin"), "ended the transaction"),
    "conn.commit()": (lambda entry, conn: conn.commit(), "commit"),
    "leaves a block open": (
        lambda entry, conn: OPEN.enter_context(conn.transaction()) and None,
        "left a transaction open",
    ),
    "switches autocommit": (lambda entry, conn: setattr(conn, "autocommit", False), ""),
    "a coroutine": (lambda entry, conn: _coroutine(), "coroutine function itself"),
}


async def _coroutine() -> None:
    """What a lambda may return by mistake."""


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("bad", list(BAD))
def test_a_callback_that_breaks_its_transaction(
    journal: Journal, dsn: str, reader: Reader, consume: Any, bad: str, batch: int
) -> None:
    """It fails, and has failed alone: its neighbours are delivered once each.

    One that commits commits the effects of those before it in its batch, which come again: here it is alone.
    """
    break_it, text = BAD[bad]
    batch = 1 if "commits" in bad else batch
    spoilt: list[Entry] = []

    def call(entry: Entry, conn: Conn) -> Any:
        if entry.payload == 2 and len(spoilt) < 2:
            spoilt.append(entry)
            return break_it(entry, conn)
        return reader(entry, conn)

    consumer = consume(call, batch=batch)
    publish_at_once(dsn, 1, 2, 3)
    until(lambda: effects(dsn) == ["1", "2", "3"])
    until(lambda: consumer.status()["delivered"] >= 3)
    journal.publish("orders", 4)
    until(lambda: effects(dsn) == ["1", "2", "3", "4"])
    if text:
        assert consumer.status()["failed"] in (1, 2)  # it may be found out only after the whole batch, at first
        assert text in (consumer.status()["last_error"] or "")
    assert run(dsn, "select count(*) from pgnotifier.owed") == [(0,)]


def test_settings_of_the_session_that_a_callback_changes(
    journal: Journal, dsn: str, reader: Reader, consume: Any
) -> None:
    """The consumer goes on."""
    statements = "set search_path = nowhere;set timezone = 'Asia/Tokyo';set datestyle = 'German'"

    def call(entry: Entry, conn: Conn) -> None:
        conn.row_factory = psycopg.rows.dict_row
        conn.execute("insert into public.effect (id, payload) values (%s, %s)", [entry.id, entry.payload])
        if entry.payload == 1:
            end(statements)(entry, conn)

    consume(call, batch=1)
    publish_at_once(dsn, 1, 2)
    journal.publish("orders", 3)
    until(lambda: effects(dsn) == ["1", "2", "3"])


@pytest.mark.parametrize("batch", [1, 100])
def test_a_deferred_constraint_that_fails_at_the_commit(
    journal: Journal, dsn: str, reader: Reader, consume: Any, batch: int
) -> None:
    """The entry that does it is found, and is the one that failed."""
    run(dsn, "create table known (id bigint primary key)")
    run(dsn, "alter table effect add foreign key (id) references known deferrable initially deferred")

    def call(entry: Entry, conn: Conn) -> None:
        reader(entry, conn)
        if entry.payload != 3:
            conn.execute("insert into known values (%s)", [entry.id])

    consumer = consume(call, on_error="skip", batch=batch)
    publish_at_once(dsn, 1, 2, 3, 4)
    until(lambda: effects(dsn) == ["1", "2", "4"])
    until(lambda: consumer.status()["delivered"] == 3)
    assert (consumer.status()["skipped"], consumer.status()["failed"]) == (1, 5)
    assert "ForeignKeyViolation" in (consumer.status()["last_error"] or "")


@pytest.mark.parametrize("state", ["40001", "40P01"])
@pytest.mark.parametrize("at_commit", [False, True])
def test_conflicts_are_repeated_and_are_no_failures(
    journal: Journal, dsn: str, reader: Reader, consume: Any, state: str, at_commit: bool
) -> None:
    run(dsn, "create sequence tries")
    run(dsn, "create function conflict() returns trigger language plpgsql as $$ begin if nextval('tries') < 8 then "
        f"raise exception 'conflict' using errcode = '{state}'; end if; return null; end $$")  # fmt: skip
    run(dsn, "create constraint trigger conflict after insert on effect deferrable initially "
        f"{'deferred' if at_commit else 'immediate'} for each row execute function conflict()")  # fmt: skip
    consumer = consume(on_error="skip")
    publish_at_once(dsn, 1, 2)
    until(lambda: effects(dsn) == ["1", "2"])
    until(lambda: consumer.status()["delivered"] == 2)
    assert (consumer.status()["failed"], consumer.status()["skipped"]) == (0, 0)


def test_a_real_deadlock(journal: Journal, dsn: str, reader: Reader, consume: Any) -> None:
    run(dsn, "create table two as select generate_series(1, 2) n")
    locked, go = threading.Event(), threading.Event()

    def call(entry: Entry, conn: Conn) -> None:
        conn.execute("set local deadlock_timeout = '50ms'")
        conn.execute("select 1 from two where n = 1 for update")
        locked.set()
        assert go.wait(10)
        conn.execute("select 1 from two where n = 2 for update")
        write(conn, entry)

    consumer = consume(call)
    with psycopg.connect(dsn) as other:
        other.execute("set deadlock_timeout = '10s'")
        journal.publish("orders", 1)
        assert locked.wait(10)
        other.execute("select 1 from two where n = 2 for update")
        go.set()
        other.execute("select 1 from two where n = 1 for update")
    until(lambda: effects(dsn) == ["1"])
    assert consumer.status()["failed"] == 0


def test_a_callback_whose_connection_is_closed_or_killed(
    journal: Journal, dsn: str, reader: Reader, consume: Any
) -> None:
    """A lost connection is no failure, whoever has ended it."""

    def call(entry: Entry, conn: Conn) -> None:
        reader(entry, conn)
        if entry.payload == 1 and reader.payloads.count(1) == 1:
            conn.close()
        if entry.payload == 2 and reader.payloads.count(2) == 1:
            run(dsn, "select pg_terminate_backend(%s, 5000)", conn.info.backend_pid)
            raise ValueError("which counts as the loss")
        if entry.payload == 4 and reader.payloads.count(4) == 1:
            raise ValueError("the latest")

    consumer = consume(call)
    publish_at_once(dsn, 1, 2, 3)
    until(lambda: effects(dsn) == ["1", "2", "3"])
    until(lambda: consumer.status()["delivered"] == 3)
    assert consumer.status()["failed"] == 0
    journal.publish("orders", 4)
    until(lambda: consumer.status()["delivered"] == 4)
    assert consumer.status()["last_error"] == "ValueError: the latest"


def test_an_error_of_another_connections_is_a_failure(
    journal: Journal, dsn: str, reader: Reader, consume: Any
) -> None:
    consumer = consume(failing(reader, 1, 2, psycopg.errors.SerializationFailure("of another")))
    journal.publish("orders", 1)
    until(lambda: effects(dsn) == ["1"])
    assert consumer.status()["failed"] == 2


def test_an_on_gap_that_raises_is_called_again(
    journal: Journal, dsn: str, reader: Reader, consume: Any, events: list[dict[str, Any]]
) -> None:
    """Its consumer waits for it."""
    consume().stop()
    publish_at_once(dsn, 1, 2)
    assert journal.trim(timedelta(0), evict=True) == 2
    journal.publish("orders", 3)
    tries: list[int | None] = []

    def on_gap(name: str, channel: str, gap: Any) -> None:
        tries.append(gap.dropped)
        assert reader.entries == []
        if len(tries) < 4:
            raise ValueError("not yet")

    consumer = consume(on_gap=on_gap)
    reader.has(3)
    assert tries == [2, 2, 2, 2]
    until(lambda: consumer.status()["delivered"] == 1)
    assert consumer.status()["failed"] == 3
    until(lambda: len([event for event in events if event["event"] == "consumer_failed"]) == 3)
    assert journal.status()["consumers"][0]["gaps"] == []


def test_gaps_without_an_on_gap_are_logged(
    journal: Journal, dsn: str, reader: Reader, consume: Any, caplog: pytest.LogCaptureFixture
) -> None:
    consume().stop()
    journal.publish("orders", 1)
    journal.trim(timedelta(0), evict=True)
    consume(on_gap=None)
    journal.publish("orders", 2)
    reader.has(2)
    assert "has missed 1 entries on channel 'orders' (trimmed)" in caplog.text


def test_system_exit_stops_the_notifier(
    journal: Journal, dsn: str, n: Notifier, reader: Reader, consume: Any, make_notifier: Any
) -> None:
    """What the callback did is rolled back, and another process takes over at once."""
    consumer = consume(failing(reader, 1, 1, SystemExit(3)))
    journal.publish("orders", 1)
    until(lambda: not n.is_running() and not consumer.status()["running"])
    assert effects(dsn) == []
    consume(notifier=make_notifier())
    until(lambda: effects(dsn) == ["1"], 3)


@pytest.mark.parametrize("which", ["consumer", "notifier"])
def test_stop_in_the_callback(
    journal: Journal, dsn: str, n: Notifier, reader: Reader, consume: Any, make_notifier: Any, which: str
) -> None:
    """It waits for nothing; its entry is delivered, and the next one is not."""
    took: list[float] = []

    def call(entry: Entry, conn: Conn) -> None:
        began = time.monotonic()
        (consumer if which == "consumer" else n).stop()
        took.append(time.monotonic() - began)
        reader(entry, conn)

    consumer = consume(call)
    publish_at_once(dsn, 1, 2)
    until(lambda: effects(dsn) == ["1"])
    until(lambda: not consumer.status()["running"])
    assert took[0] < 1
    consume(notifier=make_notifier())
    until(lambda: effects(dsn) == ["1", "2"], 3)
    assert reader.payloads == [1, 2]


@pytest.mark.parametrize("which", ["consumer", "notifier"])
def test_stop_during_a_call(
    journal: Journal, dsn: str, n: Notifier, reader: Reader, consume: Any, make_notifier: Any, which: str
) -> None:
    """The call's entry is kept, and the next one is not begun."""
    reached, go = reader.hold(1)
    consumer = consume()
    publish_at_once(dsn, 1, 2)
    assert reached.wait(10)
    stopping = threading.Thread(target=(consumer if which == "consumer" else n).stop)
    stopping.start()
    until(lambda: not consumer.status()["running"] or not n.is_running())
    go.set()
    stopping.join()
    until(lambda: effects(dsn) == ["1"])
    consume(notifier=make_notifier())
    until(lambda: effects(dsn) == ["1", "2"], 3)


def test_stop_does_not_wait_longer_than_it_is_told(
    journal: Journal, dsn: str, reader: Reader, consume: Any, make_notifier: Any, quick: None
) -> None:
    """The call loses its connection, and its entry comes again."""
    reached, go = reader.hold(1)
    consumer = consume()
    journal.publish("orders", 1)
    assert reached.wait(10)
    began = time.monotonic()
    consumer.stop(0.3)
    assert 0.3 <= time.monotonic() - began < 2.5
    consume(notifier=make_notifier())
    until(lambda: effects(dsn) == ["1"])
    go.set()
    until(lambda: len(reader.entries) == 2)


def test_stop_from_many_threads_and_again(journal: Journal, reader: Reader, consume: Any) -> None:
    consumer = consume()
    threads = [threading.Thread(target=consumer.stop) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    consumer.stop()
    assert consumer.status()["running"] is False


def test_another_database_is_refused(
    journal: Journal, make_dsn: Any, make_notifier: Any, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing: no consumer, no stream."""
    monkeypatch.setattr("pgnotifier.journal.journal.SAME_DATABASE_SECONDS", 0.5)
    elsewhere = make_notifier(make_dsn())
    with pytest.raises(ValueError, match=r"must be connected to the journal's database 'j_"):
        journal.consume(elsewhere, "mailer", "orders", reader)
    elsewhere.stop()
    with pytest.raises(ValueError, match="stopped"):
        journal.consume(elsewhere, "mailer", "orders", reader)
    assert journal.status()["consumers"] == []
    assert elsewhere.channels() == {}


def test_a_name_twice_on_one_notifier_is_refused(journal: Journal, reader: Reader, consume: Any) -> None:
    consume()
    with pytest.raises(ValueError, match="mailer"):
        consume()
    other = Reader(writes=False)
    consume(other, name="other")
    journal.publish("orders", 1)
    reader.has(1)
    other.has(1)


def test_a_consumer_whose_channel_is_removed_says_why_it_ends(
    journal: Journal, n: Notifier, consume: Any, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = consume()
    until(lambda: consumer.status()["active"])
    n.remove_channels("pgnotifier_journal")
    until(lambda: not consumer.status()["running"])
    assert consumer.status()["last_error"] == "channel 'pgnotifier_journal' was removed"
    assert "consumer 'mailer' ends: channel 'pgnotifier_journal' was removed" in caplog.text


def test_trimming_that_fails_is_no_failure_of_an_entry(
    journal: Journal, dsn: str, consume: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it end the session, or keep anything from being delivered."""
    journal.install(keep=timedelta(0))
    run(dsn, "create function refuse() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$")
    run(dsn, "create trigger refuse before delete on pgnotifier.journal for each row execute function refuse()")
    monkeypatch.setattr(consumer_module, "TRIM_EVERY", 0.01)
    failures = iter([ValueError("once")])

    def fn(entry: Entry, conn: psycopg.Connection[Any]) -> None:
        if entry.payload == 2 and (error := next(failures, None)):
            raise error
        write(conn, entry)

    consumer = consume(fn, on_error="skip")
    for number in (1, 2, 3):
        journal.publish("orders", number)
    until(lambda: consumer.status()["delivered"] == 3)
    assert (consumer.status()["failed"], consumer.status()["skipped"]) == (1, 0)
    assert effects(dsn) == ["1", "2", "3"]
    until(lambda: "cannot trim the journal: RaiseException: not this one" in caplog.text)
    assert "begins again" not in caplog.text
