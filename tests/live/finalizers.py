"""A script: objects whose finalizers call a notifier, collected anywhere, while threads change and traffic flows.

    python finalizers.py DSN SEED SECONDS THREADS METHOD...

METHOD is what the finalizers call, one or several. Ends with an error where a thread hangs or a change is lost.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import random
import sys
import threading
import time
from typing import Any

import psycopg

from pgnotifier import Notifier

dsn, seed, seconds, threads = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
METHODS = sys.argv[5:]
rng = random.Random(seed)
serial = itertools.count()
MOST = 200  # objects that wait for the collector
alive: set[int] = set()
made: set[int] = set()
gone: set[int] = set()
heard: list[Any] = []
failed: list[str] = []
ending = False
n = Notifier(dsn, workers=3)


class Owner:
    """Subscribed as long as it lives; in a cycle, so that the collector finds it."""

    def __init__(self) -> None:
        self.cycle = self
        self.number = next(serial)
        alive.add(self.number)
        self.method = METHODS[self.number % len(METHODS)]
        if self.method == "unsubscribe":
            n.subscribe(self.number, "busy", fn, on_listen=told)
            made.add(self.number)

    def __del__(self) -> None:
        alive.discard(self.number)
        if ending:
            return
        try:
            if self.method == "unsubscribe":
                n.unsubscribe(self.number, "busy")
                gone.add(self.number)
            elif self.method == "subscribe":
                n.subscribe(f"f{self.number % 50}", "busy", fn)
            elif self.method == "new channel":
                n.subscribe("f", f"n{self.number % 7}", fn)
                n.unsubscribe("f", f"n{(self.number + 3) % 7}")
            elif self.method == "mute":
                n.mute_channels("other")
                n.unmute_channels("other")
            elif self.method == "status":
                n.status(), n.channels(), n.subscribers()
            elif self.method == "stop":
                n.stop(1)
        except Exception as error:
            failed.append(f"{self.method}: {error!r}")


def litter() -> None:
    for _ in range(3):
        cycle: list[Any] = []
        cycle.append(cycle)


def fn(*args: Any) -> None:
    litter()


def told(*args: Any) -> None:
    litter()


def job(f: Any) -> threading.Thread:
    def run() -> None:
        try:
            while time.monotonic() < end:
                f()
        except BaseException as error:
            failed.append(f"{f.__name__}: {error!r}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def change() -> None:
    if len(alive) > MOST:  # finalizers could not keep up
        time.sleep(0.0005)
        return
    Owner()
    if rng.random() < 0.3:
        n.subscribe("c", f"c{rng.randrange(5)}", fn)
    if "stop" in METHODS and not n.is_running():
        n.start()


def traffic() -> None:
    sender.execute(
        "select pg_notify(c, i::text) from unnest(array['busy', 'other', 'c1']) c, generate_series(1, 20) i"
    )
    gc.set_threshold(rng.randint(1, 20))


sender = psycopg.connect(dsn, autocommit=True)
n.subscribe("always", "busy", fn)
n.subscribe("always", "other", fn)
end = time.monotonic() + seconds
faulthandler.dump_traceback_later(seconds + 90, exit=True)  # a loaded machine takes long
workers = [job(change) for _ in range(threads)] + [job(traffic)]
for worker in workers:
    worker.join()
gc.set_threshold(700)
gc.collect()
deadline = time.monotonic() + 40
while [t for t in threading.enumerate() if t.name == "pgnotifier-change"] and time.monotonic() < deadline:
    time.sleep(0.001)  # what a finalizer called under a lock may take effect later
n.start()
n.subscribe("probe", "probe", lambda *a: heard.append(a[2]))
sender.execute("select pg_notify('probe', '1')")
deadline = time.monotonic() + 40
while heard != [1] and time.monotonic() < deadline:
    time.sleep(0.001)
left = kept = [0]
while (left or kept) and time.monotonic() < deadline:  # a finalizer may be at work in another thread
    time.sleep(0.01)
    subscribed = n.subscribers()
    left = [number for number in list(gone) if number in subscribed]
    kept = [number for number in list(made) if number not in gone and number not in subscribed]
for text in [
    *failed[:5],
    *([f"not heard: {n.status()}"] if heard != [1] else []),
    *([f"{len(left)} of {len(gone)} are subscribed still"] if left else []),
    *([f"{len(kept)} are not subscribed any more"] if kept else []),
]:
    print("PROBLEM", text)
    ending = True
print(f"{next(serial)} objects, {len(gone)} unsubscribed")
problem = ending
ending = True
n.stop()
sys.exit(problem)
