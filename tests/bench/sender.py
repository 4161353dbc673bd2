"""Sends one notification at a time, each with the moment of its sending: `DSN CHANNEL COUNT GAP`."""

from __future__ import annotations

import sys
from time import perf_counter, sleep

import psycopg


def main(dsn: str, channel: str, count: str, gap: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for _ in range(int(count)):
            sleep(float(gap))
            conn.execute("select pg_notify(%s, %s)", (channel, repr(perf_counter())))


if __name__ == "__main__":
    main(*sys.argv[1:])
