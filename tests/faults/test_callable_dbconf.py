"""A callable dbconf, for credentials that expire (guarantees 2 and 10)."""

from __future__ import annotations

from typing import Any

from pgnotifier import Notifier

from .conftest import until_reconnected
from .servers import Server
from .traffic import Stream, Traffic, assert_whole


def test_asked_before_every_connection(db: Server, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 2: what it returned last is what the session was made with."""
    asked: list[str] = []

    def conf() -> str:
        asked.append(f"attempt {len(asked) + 1}")
        return f"{db.dsn} application_name='{asked[-1]}'"

    def name(pid: int) -> list[tuple[Any, ...]]:
        return db.execute("select application_name from pg_stat_activity where pid = %s", [pid])

    with Notifier(conf, heartbeat=1.0, retry_delay=(0.01, 0.1)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        for _ in range(5):
            pid, count = n.status()["pid"], len(asked)
            assert name(pid) == [(asked[-1],)]
            db.terminate(pid)
            until_reconnected(n, pid)
            assert len(asked) > count
        n.stop()
        count = len(asked)
        n.start()
        assert len(asked) == count + 1
        assert_whole(traffic, stream)


def test_one_that_raises_is_asked_again(db: Server, traffic: Traffic, stream: Stream) -> None:
    """Guarantee 10: reconnecting goes on for ever, also where credentials can't be had, or are wrong, for a while."""
    answers: list[Exception | str] = []

    def conf() -> str:
        answer = answers.pop(0) if answers else db.dsn
        if isinstance(answer, Exception):
            raise answer
        return answer

    with Notifier(conf, heartbeat=1.0, retry_delay=(0.01, 0.1)) as n:
        n.subscribe("s", stream.channel, stream.heard, on_listen=stream.told)
        answers += [RuntimeError("no token"), OSError("no network"), f"{db.dsn} dbname=missing", "not a dsn"]
        pid = n.status()["pid"]
        db.terminate(pid)
        until_reconnected(n, pid)
        assert answers == []
        assert_whole(traffic, stream)
        assert n.status()["reconnects"] == 1
