"""A script: calls of a notifier, each interrupted by a signal at a random place. Its handler calls another method, or
raises KeyboardInterrupt. Afterwards the notifier must work. A call that hangs is shown by faulthandler.

    python interrupts.py DSN SEED HITS OUTER INNER [OUTER INNER]...

INNER is a method, or "KeyboardInterrupt". Half of the signals come when OUTER begins some function;
CPython looks for them there. The others come after a random time.
"""

from __future__ import annotations

import faulthandler
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import psycopg

from pgnotifier import Notifier

METHODS = [
    "subscribe",
    "unsubscribe",
    "mute_channels",
    "unmute_channels",
    "mute_subscriber",
    "unmute_subscriber",
    "add_channels",
    "remove_channels",
    "start",
    "stop",
    "restart",
    "status",
    "channels",
    "notify",
    "wait",
]
MANY = 1000  # subscriptions with on_listen
LIMIT = 10  # seconds in which one interrupted call, and what is looked at after it, must end


class Trial:
    def __init__(self, dsn: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.sender = psycopg.connect(dsn, autocommit=True)
        self.n = n = Notifier(dsn)
        self.heard = 0
        self.sent = 0
        self.hits = 0
        self.problems: list[str] = []
        self.inside = False
        self.inner = ""
        self.calls: dict[str, int] = {}  # Python functions that a call of the method begins
        self.seconds: dict[str, float] = {}
        n.add_channels(f"m{i}" for i in range(20))
        for i in range(MANY):
            n.subscribe(i, f"m{i % 20}", self.fn, autorun=False, on_listen=self.fn)
        n.subscribe("probe", "probe", self.probed)
        n.subscribe("s", "s", self.fn, on_listen=self.fn)
        signal.signal(signal.SIGALRM, self.handler)

    def fn(self, *args: Any) -> None:
        pass

    def probed(self, id: Any, channel: str, payload: Any, pid: int) -> None:
        self.heard = payload

    def do(self, method: str, place: str) -> Any:
        n = self.n
        name = f"{place}{self.rng.randrange(3)}"
        calls: dict[str, Callable[[], Any]] = {
            "subscribe": lambda: n.subscribe(name, name, self.fn, on_listen=self.fn),
            "unsubscribe": lambda: n.unsubscribe(name, name),
            "mute_channels": lambda: n.mute_channels(["s", "m1"]),
            "unmute_channels": lambda: n.unmute_channels(["s", "m1"]),
            "mute_subscriber": lambda: n.mute_subscriber("s"),
            "unmute_subscriber": lambda: n.unmute_subscriber("s"),
            "add_channels": lambda: n.add_channels(name),
            "remove_channels": lambda: n.remove_channels([f"{place}0", f"{place}1"]),
            "notify": lambda: n.notify("m0", 1),
            "wait": lambda: n.wait(0),
        }
        return calls[method]() if method in calls else getattr(n, method)()

    def handler(self, *args: Any) -> None:
        if not self.inside:
            return
        self.inside = False  # one hit a call
        self.hits += 1
        if self.inner == "KeyboardInterrupt":
            raise KeyboardInterrupt
        try:
            self.do(self.inner, "i")
        except Exception:
            self.problem("the handler raised " + traceback.format_exc())

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def prepare(self, outer: str) -> None:
        if outer == "start":
            self.n.stop()
        elif not self.n.is_running():
            self.n.start()
        if outer in ("mute_channels", "mute_subscriber"):
            self.do("un" + outer, "o")
        elif outer in ("unmute_channels", "unmute_subscriber"):
            self.do(outer[2:], "o")
        elif outer in ("unsubscribe", "remove_channels"):
            self.do("subscribe", "o")

    def measure(self, outer: str) -> None:
        """How long a call takes, and how many functions it begins."""
        self.prepare(outer)
        count = 0

        def trace(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += 1

        sys.settrace(trace)
        self.do(outer, "o")
        sys.settrace(None)
        self.prepare(outer)
        began = time.perf_counter()
        self.do(outer, "o")
        self.calls[outer], self.seconds[outer] = count, time.perf_counter() - began

    def interrupted(self, outer: str, inner: str, timed: bool) -> None:
        self.prepare(outer)
        self.inner, self.inside = inner, True
        most = max(2, self.calls[outer])
        left = self.rng.choice([self.rng.randint(2, most), int(most ** self.rng.random()) + 1])
        if self.rng.random() < 0.33:  # the end is as interesting as the beginning, and most happens in between
            left = most + 2 - int(most ** self.rng.random())

        def trace(frame: Any, event: str, arg: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGALRM)

        try:
            if timed:
                signal.setitimer(signal.ITIMER_REAL, self.rng.uniform(1e-6, self.seconds[outer] * 1.1 + 2e-6))
            else:
                sys.settrace(trace)
            self.do(outer, "o")
        except KeyboardInterrupt:
            if inner != "KeyboardInterrupt":
                self.problem("KeyboardInterrupt")
        except Exception as error:
            given_up = isinstance(error, psycopg.OperationalError) and (outer, inner) == ("notify", "stop")
            if not given_up:  # the only call that can't do both
                self.problem("it raised " + traceback.format_exc())
        finally:
            self.inside = False
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_REAL, 0)

    def hears(self) -> bool:
        self.sent += 1
        self.sender.execute("select pg_notify('probe', %s)", (str(self.sent),))
        deadline = time.monotonic() + 5
        while self.heard != self.sent and time.monotonic() < deadline:
            time.sleep(0.0005)
        return self.heard == self.sent

    def settled(self, what: str) -> bool:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            status = self.n.status()
            if what == "pending" and status["pending"] == 0:
                return True
            # Ctrl-C in Thread.start() can leave a thread listed that never begins: it has no ident.
            if what != "pending" and not [t for t in threading.enumerate() if t.ident and t.name.startswith(what)]:
                return True
            time.sleep(0.001)
        return False

    def look(self, inner: str) -> None:
        """What must hold, whatever was interrupted."""
        n = self.n
        if not self.settled("pgnotifier-change"):  # a change that interrupted another may take effect after it
            self.problem("a change that interrupted another has not come to its end")
        if inner == "KeyboardInterrupt":
            n.stop()
            if n.is_running() or n.status()["connected"]:
                self.problem("running after stop()")
            if not self.settled("pgnotifier-"):
                self.problem(f"threads left: {[t.name for t in threading.enumerate()]}")
            n.start()
        if n.is_running() and not self.hears():
            self.problem(f"running, and not listening: {n.status()}")
        if not n.is_running() and n.status()["connected"]:
            self.problem("connected, and not running")
        if inner == "KeyboardInterrupt" and not self.settled("pending"):
            self.problem(f"pending: {n.status()['pending']}")

    def pair(self, outer: str, inner: str, hits: int) -> int:
        if outer not in self.calls:
            self.measure(outer)
        before, tries, found = self.hits, 0, len(self.problems)
        while self.hits < before + hits and tries < 3 * hits and len(self.problems) == found:
            faulthandler.dump_traceback_later(LIMIT, exit=True)
            print(f"{inner} in {outer}", flush=True)
            tries += 1
            try:
                self.interrupted(outer, inner, timed=bool(tries % 2))
                self.look(inner)
            except Exception:
                self.problem("afterwards: " + traceback.format_exc())
            faulthandler.cancel_dump_traceback_later()
        self.problems[found:] = [f"{inner} in {outer}: {text}" for text in self.problems[found:]]
        return self.hits - before


def main() -> None:
    dsn, seed, hits, *names = sys.argv[1:]
    trial = Trial(dsn, int(seed))
    for outer, inner in zip(names[::2], names[1::2], strict=True):
        done = trial.pair(outer, inner, int(hits))
        print(f"{inner} in {outer}: {done} hits", flush=True)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    trial.n.stop()
    if not trial.settled("pgnotifier-"):
        trial.problem("a thread is left")
    for text in trial.problems:
        print("PROBLEM", text, flush=True)
    print(f"{trial.hits} hits, {len(trial.problems)} problems", flush=True)
    sys.exit(bool(trial.problems))


if __name__ == "__main__":
    main()
