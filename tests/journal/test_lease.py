"""One process of a name consumes; another takes over within ten seconds, whatever has become of it (guarantee 18)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier
from pgnotifier.journal import Journal

from . import process
from .reading import Reader, effects, run

IN_CALL = "select 1 from pg_stat_activity where state = 'idle in transaction' and query like 'insert into effect%'"
HOLDER = """
    select a.application_name from pgnotifier.lease l join pg_stat_activity a on a.pid = l.pid
    where l.expires > clock_timestamp()"""


def holder(dsn: str) -> str | None:
    """Which process consumes."""
    rows = run(dsn, HOLDER)
    return rows[0][0] if rows else None


def deliver(journal: Journal, dsn: str, payload: str, seconds: float) -> None:
    """Publish, and wait for it."""
    journal.publish("orders", payload)
    until(lambda: effects(dsn)[-1:] == [payload], seconds)


def test_three_processes_two_killed_one_frozen_in_its_transaction(journal: Journal, dsn: str, tmp_path: Path) -> None:
    """Each takeover is within ten seconds; the frozen one, thawed, does nothing twice and can take over again."""
    fence = tmp_path / "fence"
    names = ["one", "two", "three"]
    processes = {who: process.start(dsn, who, fence=str(fence)) for who in names}

    def take_over(begin: Any) -> tuple[str, str]:
        """Let `begin` do away with the holder; returns it and the next one."""
        until(lambda: holder(dsn))
        before = holder(dsn)
        assert before is not None
        begin(processes[before])
        since = time.monotonic()
        deliver(journal, dsn, f"after {before}", 10.0)
        after = holder(dsn)
        print(f"{before} to {after} in {time.monotonic() - since:.1f} s")
        assert after is not None
        assert after != before
        return before, after

    def freeze(holder: Popen[str]) -> None:
        journal.publish("orders", "hold")
        until(lambda: run(dsn, IN_CALL))
        holder.send_signal(signal.SIGSTOP)
        fence.touch()

    with process.ending(list(processes.values())):
        deliver(journal, dsn, "first", 10.0)
        frozen, second = take_over(freeze)
        processes[frozen].send_signal(signal.SIGCONT)
        time.sleep(1.0)  # for whatever it may do
        deliver(journal, dsn, "thawed", 5.0)
        assert holder(dsn) == second
        _, third = take_over(Popen.kill)
        take_over(Popen.kill)
    wanted = ["first", "hold", f"after {frozen}", "thawed", f"after {second}", f"after {third}"]
    assert effects(dsn) == wanted


def test_stopping_gives_the_name_away_at_once(
    journal: Journal, reader: Reader, consume: Any, make_notifier: Any
) -> None:
    one = consume()
    until(lambda: one.status()["active"])
    two = consume(notifier=make_notifier())
    assert not two.status()["active"]
    one.stop()
    until(lambda: two.status()["active"], 3)
    journal.publish("orders", 1)
    reader.has(1)


def test_a_lease_is_renewed_while_the_callback_runs(
    journal: Journal, reader: Reader, consume: Any, make_notifier: Any, quick: None
) -> None:
    reached, go = reader.hold(1)
    one = consume()
    until(lambda: one.status()["active"])
    two = consume(notifier=make_notifier())
    journal.publish("orders", 1)
    assert reached.wait(10)
    time.sleep(3)
    assert not two.status()["active"]
    go.set()
    journal.publish("orders", 2)
    reader.has(1, 2)
    assert one.status()["active"]


def test_the_servers_clock_was_set_back(journal: Journal, dsn: str, reader: Reader, consume: Any) -> None:
    """No lease lasts longer than they do, so one that ends in an hour is not believed."""
    run(dsn, "insert into pgnotifier.consumer (name, since) values ('mailer', pg_current_snapshot())")
    run(dsn, "insert into pgnotifier.lease values ('mailer', %s, 1, now(), now() + interval '1 hour')", str(uuid4()))
    consume()
    journal.publish("orders", 1)
    reader.has(1)


@pytest.fixture
def role(server: str) -> Iterator[str]:
    run(server, "create role consuming login")
    yield "consuming"
    run(server, "drop role consuming")


def test_a_holder_of_another_role_cannot_be_ended(
    journal: Journal, dsn: str, role: str, reader: Reader, consume: Any, make_notifier: Any, quick: None
) -> None:
    """Its transaction, which holds the position, decides; the other one waits."""
    run(dsn, f"grant usage on schema pgnotifier to {role}")
    run(dsn, f"grant all on all tables in schema pgnotifier to {role}")
    try:
        with psycopg.connect(dsn) as conn:
            conn.execute("insert into pgnotifier.consumer (name, since) values ('mailer', pg_current_snapshot())")
            conn.execute("insert into pgnotifier.consumer_channel values ('mailer', 'orders', pg_current_snapshot())")
            conn.commit()
            conn.execute("insert into pgnotifier.lease select 'mailer', gen_random_uuid(), pid, backend_start, now() "
                "from pg_stat_activity where pid = pg_backend_pid()")  # fmt: skip
            conn.commit()
            conn.execute("select 1 from pgnotifier.consumer for no key update")
            theirs = psycopg.conninfo.make_conninfo(dsn, user=role)
            consumer = consume(lambda entry, conn: reader.entries.append(entry), journal=Journal(theirs))
            journal.publish("orders", 1)
            until(lambda: consumer.status()["active"])
            time.sleep(0.5)
            assert reader.entries == []
            conn.rollback()
            reader.has(1)
            consumer.stop()
            assert journal.trim(timedelta(0)) == 1
    finally:
        run(dsn, f"drop owned by {role}")


def test_a_removed_consumer_ends_everywhere(
    journal: Journal, reader: Reader, consume: Any, make_notifier: Any
) -> None:
    """At once, though nothing is published; also one that waits for the name."""
    one, two = consume(), consume(notifier=make_notifier())
    journal.publish("orders", 1)
    reader.has(1)
    until(lambda: one.status()["delivered"])
    time.sleep(0.5)
    assert journal.remove("mailer")
    until(lambda: not one.status()["running"] and not two.status()["running"], 5)
    assert not journal.remove("mailer")
    assert journal.status()["consumers"] == []


def test_a_forked_child_leaves_the_parents_consumer_alone(
    journal: Journal, dsn: str, reader: Reader, consume: Any
) -> None:
    """The child's `stop`, and its end, touch no session of the parent's."""
    consumer = consume()
    journal.publish("orders", 1)
    reader.has(1)
    sessions = "select array_agg(pid order by pid) from pg_stat_activity where application_name = 'pgnotifier'"
    before = run(dsn, sessions)
    pid = os.fork()
    if pid == 0:
        try:
            consumer.stop()
            os._exit(0 if consumer.status()["running"] is False else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    journal.publish("orders", 2)
    reader.has(1, 2)
    assert run(dsn, sessions) == before


def test_a_session_that_gave_the_name_away_is_left_alone(
    journal: Journal, make_notifier: Callable[..., Notifier], consume: Any
) -> None:
    """A consumer that steps back for one with other channels waits on; its session is no vanished holder's."""
    first = consume(notifier=make_notifier())
    until(lambda: first.status()["active"])
    session = first._session
    second = consume(notifier=make_notifier(), channels=["orders", "refunds"])
    journal.publish("orders", 1)
    until(lambda: second.status()["active"])
    second.stop()
    until(lambda: first.status()["active"])
    assert first._session is session
    assert first.status()["last_error"] is None


def test_an_idle_consumer_whose_name_was_taken_says_so(journal: Journal, dsn: str, consume: Any) -> None:
    consumer = consume()
    until(lambda: consumer.status()["active"])
    run(dsn, "update pgnotifier.lease set holder = pg_catalog.gen_random_uuid()")
    until(lambda: not consumer.status()["active"])
