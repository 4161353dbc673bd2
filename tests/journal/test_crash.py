"""The server dies by SIGKILL, and gives the transaction ids that it had not yet written to disk anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from conftest import until
from faults.servers import Server
from pgnotifier import Notifier
from pgnotifier.journal import Journal
from pgnotifier.journal.rounds import Rounds

from .reading import PUBLISH, Reader


@pytest.fixture
def cluster() -> Iterator[Server]:
    with Server({"wal_writer_delay": "10s"}) as cluster:
        yield cluster


def test_ids_of_transactions_are_used_again(cluster: Server, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that was not stored shows transactions as over which begin only after the crash."""
    next_slice, burnt = Rounds._next_slice, list[int]()

    def burn_ids(self: Rounds, session: Any, position: Any) -> Any:
        with psycopg.connect(cluster.dsn) as conn:
            while reader.payloads == [0] and len(burnt) < 300:
                [(xid,)] = conn.execute("select pg_current_xact_id()::text::int").fetchall()
                burnt.append(xid)
                conn.rollback()
        return next_slice(self, session, position)

    with Journal(cluster.dsn) as journal, Notifier(cluster.dsn, retry_delay=(0.01, 0.1)) as n:
        journal.install()
        cluster.execute("create table effect (place bigserial, id bigint primary key, payload text)")
        first, free = reader.hold(0)
        reached, go = reader.hold(1)
        with journal.consume(n, "mailer", "orders", reader):
            journal.publish("orders", 0)
            assert first.wait(10)
            journal.publish("orders", 1)
            monkeypatch.setattr(Rounds, "_next_slice", burn_ids)
            free.set()
            assert reached.wait(10)
            cluster.kill()
            again, proceed = reader.hold(1)
            cluster.start()
            go.set()
            assert again.wait(20)
            with psycopg.connect(cluster.dsn) as conn:
                conn.execute(PUBLISH, [2])
                [(xid,)] = conn.execute("select pg_current_xact_id()::text::int").fetchall()
                assert xid <= burnt[-1]
                proceed.set()
                until(lambda: cluster.execute("select 1 from effect where payload = '1'"))
            until(lambda: 2 in reader.payloads)
