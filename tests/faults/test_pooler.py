"""pgbouncer: refused where a LISTEN would be heard by nobody, and no hindrance where it works (guarantee 10)."""

from __future__ import annotations

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier
from pgnotifier.errors import CannotListen

from .pooler import PGBOUNCER, Pooler
from .servers import Server
from .traffic import Stream, Traffic, assert_whole

pytestmark = pytest.mark.skipif(
    PGBOUNCER is None,
    reason="NOT RUN: pgbouncer is not installed (Debian: apt install pgbouncer), so poolers are untested here",
)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("others", [0, 3])
def test_refused_at_construction(db: Server, mode: str, others: int) -> None:
    """Guarantee 10: also for the pool's only client, which has the same server session in each transaction."""
    with Pooler(db, mode) as pooler:
        clients = [psycopg.connect(pooler.dsn, autocommit=True) for _ in range(others)]
        try:
            for client in clients:
                client.execute("select 1")
            with pytest.raises(CannotListen, match=r"(?is)pool.*transaction.*(direct|session)"):
                Notifier(pooler.dsn)
        finally:
            for client in clients:
                client.close()


def test_session_mode_works(db: Server, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 10: the session is kept for one client, so it can listen, and is found again when lost."""
    with Pooler(db, "session") as pooler, Notifier(pooler.dsn, heartbeat=0.5, retry_delay=(0.01, 0.2)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        until(lambda: stream.last)
        for number in range(1, 4):  # status()["pid"] must be the server's, not the number that pgbouncer gives out
            assert db.terminate(n.status()["pid"])
            until(lambda number=number: n.status()["reconnects"] == number and n.status()["connected"])
        assert_whole(traffic, stream)


def test_reload_into_transaction_mode(db: Server) -> None:
    """Guarantee 10: met while reconnecting it counts as a lost connection; construction works with session mode."""
    with Pooler(db, "session") as good, Pooler(db, "transaction") as bad:
        conf = {"dsn": good.dsn}
        with Notifier(lambda: conf["dsn"], retry_delay=(0.01, 0.05)) as n:
            pid = n.status()["pid"]
            conf["dsn"] = bad.dsn
            db.terminate(pid)
            until(lambda: "CannotListen" in str(n.status()["last_error"]))
            assert n.is_running()
            conf["dsn"] = good.dsn
            until(lambda: n.status()["connected"])
