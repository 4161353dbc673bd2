"""Ends of processes and threads: the interpreter's, a signal's, a fork's in the callback (guarantees 11 and 18)."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pgnotifier.journal import Journal

from .process import SOURCE
from .reading import effects, run

SCRIPT = """
import os, signal, sys, time
from pgnotifier import Notifier
from pgnotifier.journal import Journal
dsn, how = sys.argv[1:]
journal, n = Journal(dsn), Notifier(dsn, retry_delay=(0.01, 0.1))
def fn(entry, conn):
    conn.execute("insert into effect (id, payload) values (%s, %s)", [entry.id, str(entry.payload)])
    if how == "fork":
        if os.fork() == 0:
            sys.exit()
        os.wait()
    if how == "busy":
        time.sleep(30)
consumer = journal.consume(n, "mailer", "orders", fn)
def stop(*_):
    consumer.stop()
    consumer.stop()
    n.stop()
signal.signal(signal.SIGTERM, stop)
journal.publish("orders", how)
deadline = time.monotonic() + 10
while time.monotonic() < deadline and not (how == "busy" or consumer.status()["delivered"]):
    time.sleep(0.01)
time.sleep(0.3)
if how == "signal":
    os.kill(os.getpid(), signal.SIGTERM)
    assert not consumer.status()["running"]
print(time.time(), flush=True)
"""


@pytest.mark.parametrize("how", ["idle", "busy", "signal", "fork"])
def test_the_interpreter_ends_quickly_and_quietly(journal: Journal, dsn: str, how: str) -> None:
    """An entry whose call was under way comes again. One whose callback forked is there once.

    The child may say on standard error how it ended; the parent notices nothing.
    """
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    script = [sys.executable, "-c", SCRIPT, dsn, how]
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == "" or (how == "fork" and "begins again" not in done.stderr)
    assert time.time() - float(done.stdout.split()[-1]) < 3
    assert effects(dsn) == ([] if how == "busy" else [how])
    assert run(dsn, "select count(*) from pgnotifier.owed") == [(how == "busy",)]
