"""The journal beside a plain queue: `python -m tests.bench.journal [--entries 100000] [--rounds 5] [--lag 1000000]`.

Each round publishes in one statement and consumes with an empty callback: with the journal, and with a table from
which `DELETE ... FOR UPDATE SKIP LOCKED` takes as many rows at a time as the journal's consumer has in a batch, in a
transaction each. Then a consumer is `--lag` entries behind: what its first batch, all of them, and `status` cost.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter, sleep
from typing import Any

import psycopg

from pgnotifier import Notifier
from pgnotifier.journal import Journal

BATCH = 100
PUBLISH = "insert into pgnotifier.journal (channel, payload) select 'bench', i::text from generate_series(1, %s) i"
ENQUEUE = "insert into bench_queue (channel, payload) select 'bench', i::text from generate_series(1, %s) i"
TAKE = """
    delete from bench_queue where id in (
        select id from bench_queue order by id limit %s for update skip locked) returning id, channel, payload"""


def timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        sleep(0.001)


def journal_round(dsn: str, conn: psycopg.Connection[Any], entries: int) -> tuple[float, float]:
    """Seconds to publish and to consume."""
    with (
        Journal(dsn) as journal,
        Notifier(dsn) as n,
        journal.consume(n, "bench", "bench", empty, batch=BATCH) as consumer,
    ):
        wait_for(lambda: consumer.status()["active"])
        began = perf_counter()
        conn.execute(PUBLISH, [entries])
        published = perf_counter() - began
        wait_for(lambda: consumer.status()["delivered"] >= entries)
        consumed = perf_counter() - began - published
    conn.execute("truncate pgnotifier.journal")
    return published, consumed


def queue_round(dsn: str, conn: psycopg.Connection[Any], entries: int) -> tuple[float, float]:
    def consume() -> None:
        with psycopg.connect(dsn) as worker:
            while True:
                with worker.transaction():
                    rows = worker.execute(TAKE, [BATCH]).fetchall()
                    for row in rows:
                        empty(row, worker)
                if not rows:
                    return

    published = timed(lambda: conn.execute(ENQUEUE, [entries]))
    consumed = timed(consume)
    conn.execute("truncate bench_queue")
    return published, consumed


def empty(entry: object, conn: object) -> None:
    pass


def lag(dsn: str, conn: psycopg.Connection[Any], entries: int) -> dict[str, float]:
    first = threading.Event()
    with Journal(dsn) as journal, Notifier(dsn) as n:
        journal.consume(n, "behind", "bench", empty).stop()
        published = timed(lambda: conn.execute(PUBLISH, [entries]))
        status = timed(journal.status)
        began = perf_counter()
        with journal.consume(n, "behind", "bench", lambda entry, conn: first.set(), batch=BATCH) as consumer:
            first.wait()
            until_first = perf_counter() - began
            wait_for(lambda: consumer.status()["delivered"] >= entries)
            until_last = perf_counter() - began
    return {"publish": published, "status": status, "first": until_first, "all": until_last}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.journal")
    parser.add_argument("--dsn")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lag", type=int, default=1_000_000)
    args = parser.parse_args()
    with psycopg.connect(args.dsn, autocommit=True) as conn:
        conn.execute("drop schema if exists pgnotifier cascade; drop table if exists bench_queue")
        conn.execute(
            "create table bench_queue ("
            "id bigint generated always as identity primary key, channel text, payload text)"
        )
        with Journal(args.dsn) as journal:
            journal.install()
        found = [
            (journal_round(args.dsn, conn, args.entries), queue_round(args.dsn, conn, args.entries))
            for _ in range(args.rounds)
        ]
        for place, name in enumerate(("publish", "consume")):
            ours, queue = (median(round[side][place] for round in found) for side in (0, 1))
            print(
                f"{name} {args.entries:,}: journal {args.entries / ours:,.0f}/s, queue {args.entries / queue:,.0f}/s,"
                f" ratio {queue / ours:.2f}",
                flush=True,
            )
        if args.lag:
            for name, seconds in lag(args.dsn, conn, args.lag).items():
                print(f"{args.lag:,} behind: {name} {seconds:.2f} s", flush=True)
        conn.execute("drop schema pgnotifier cascade; drop table bench_queue")


if __name__ == "__main__":
    main()
