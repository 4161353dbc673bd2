"""A consumer in a process of its own: `started(dsn, ...)` in a test, `python process.py DSN OPTIONS` in it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

import pgnotifier
from pgnotifier import Notifier
from pgnotifier.journal import Entry, Journal, lease
from pgnotifier.journal import consumer as consumer_module

SOURCE = Path(pgnotifier.__file__).parent.parent


def start(dsn: str, who: str, **options: Any) -> Popen[str]:
    """Start one, and wait until it is registered. `who` is its application_name.

    `seconds` of a lease; `batch`; `fence`: the name of a file that a call for the payload "hold" waits for.
    """
    text = make_conninfo(dsn, application_name=who)
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = Popen([sys.executable, __file__, text, json.dumps(options)], stdout=PIPE, text=True, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@contextmanager
def ending(processes: list[Popen[str]]) -> Iterator[None]:
    """Kill them at the end of the block."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def main(dsn: str, seconds: float = 0.0, batch: int = 100, fence: str = "") -> None:
    if seconds:
        lease.SECONDS, lease.RENEW, lease.POLL, consumer_module.POLL = (
            seconds,
            seconds / 3,
            seconds / 10,
            seconds / 10,
        )

    def note(entry: Entry, conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into effect (id, payload) values (%s, %s)", [entry.id, str(entry.payload)])
        while entry.payload == "hold" and not Path(fence).exists():
            time.sleep(0.01)

    with Journal(dsn) as journal, Notifier(dsn, retry_delay=(0.01, 0.1)) as n:
        journal.consume(n, "mailer", "orders", note, start="beginning", batch=batch)
        print("ready", flush=True)
        n.wait()


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
