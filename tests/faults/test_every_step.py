"""Guarantees 5, 10 and 11: a fault between any two lines of the listener's life.

By default at a sample of places (PGNOTIFIER_TEST_SEED repeats it); with PGNOTIFIER_LONG=1 at every one.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier

from .servers import Server
from .steps import CALLER, Steps
from .traffic import Stream, Traffic, assert_whole, judge

LONG = os.environ.get("PGNOTIFIER_LONG") == "1"
NAME = "every_step"
HEARTBEAT = 0.3
SECONDS = {"kill": 10.0, "freeze": 10.0, "restart": 20.0}  # within which it is connected again
PLACES = {"kill": 45, "freeze": 3, "restart": 2}  # by default
CALLS = ["subscribe", "unsubscribe", "mute", "unmute", "start", "reconnect"]


class Faults:
    """What can happen to the sessions of the notifier. `mend` undoes what was done."""

    def __init__(self, db: Server, rng: random.Random) -> None:
        self._db, self._rng = db, rng
        self._frozen: list[int] = []
        self._starting: threading.Thread | None = None
        self._conn: psycopg.Connection[Any] | None = None
        self.returned = threading.Event()  # the call has
        self.late = False  # it had not while the server was down
        self.hit = 0  # faults that met a session; a restart always does

    def pids(self) -> list[int]:
        return self._execute("select pid from pg_stat_activity where application_name = %s", NAME)

    def _execute(self, query: str, argument: object) -> list[Any]:
        """The first column, on a connection that is kept."""
        try:
            if self._conn is None or self._conn.closed:
                self._conn = psycopg.connect(self._db.dsn, autocommit=True)
            return [row[0] for row in self._conn.execute(query.encode(), [argument])]
        except psycopg.OperationalError:
            self.close()
            raise

    def close(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def terminate(self, *pids: int) -> None:
        with contextlib.suppress(psycopg.OperationalError):  # another fault has come first
            self._execute("select pg_terminate_backend(p) from unnest(%s::int[]) p", list(pids))

    def kill(self) -> None:
        pids = self.pids()
        self.terminate(*pids)
        until(lambda: not {*pids}.intersection(self.pids()))  # its own time-out would look every 0.1 s only
        self.hit += bool(pids)

    def freeze(self) -> None:
        pids = self.pids()
        for pid in pids:
            self._db.freeze(pid)
            self._frozen.append(pid)
        self.hit += bool(pids)

    def restart(self) -> None:
        """The server is down when the thread goes on, and comes back when the call has returned."""
        self.close()
        self._db.stop(self._rng.choice(["fast", "immediate"]))  # type: ignore[arg-type]
        self._starting = threading.Thread(target=self._start, args=(self._rng.uniform(0, 0.1),))
        self._starting.start()
        self.hit += 1

    def _start(self, pause: float) -> None:
        self.late = not self.returned.wait(5)
        time.sleep(pause)
        self._db.start()

    def mend(self) -> None:
        self._db.thaw(*self._frozen)
        self._frozen.clear()
        if self._starting is not None:
            self._starting.join()
            self._starting = None


class Play:
    """A notifier under traffic, with a subscriber that stays and one that is changed."""

    def __init__(self, n: Notifier, channel: str, traffic: Traffic, faults: Faults, steps: Steps, fault: str) -> None:
        self.n, self.channel, self.other = n, channel, f"{channel}_other"
        self.traffic, self.faults, self.steps, self.fault = traffic, faults, steps, fault
        self.stream = Stream(channel)
        self.changed = Stream(self.other)
        n.subscribe("stays", channel, self.stream.heard, on_listen=self.stream.told)

    def until(self, condition: Callable[[], object]) -> None:
        try:
            until(condition, SECONDS[self.fault])
        except AssertionError as error:
            raise AssertionError(f"{error}, after {self.fault} at {self.steps.place}: {self.n.status()}") from None

    def subscribe(self) -> None:
        self.changed = Stream(self.other)
        self.n.subscribe("changed", self.other, self.changed.heard, on_listen=self.changed.told)

    def prepare(self, call: str) -> None:
        self.n.unmute_channels()
        if call == "subscribe":
            self.n.unsubscribe("changed", self.other)
        elif call in ("unsubscribe", "mute", "unmute") and "changed" not in self.n.subscribers():
            self.subscribe()
        if call == "unmute":
            self.n.mute_channels(self.other)
        if call == "start":
            self.n.stop()
            until(lambda: not self.faults.pids())

    def make(self, call: str) -> None:
        """The call itself, on the thread `CALLER`."""
        if call == "subscribe":
            self.subscribe()
        elif call == "unsubscribe":
            self.n.unsubscribe("changed", self.other)
        elif call == "start":
            self.n.start()
        elif call == "reconnect":
            pid = self.n.status()["pid"]
            self.faults.terminate(pid or 0)
            until(lambda: self.n.status()["pid"] not in (pid, None) or self.steps.place, 10)
        else:
            (self.n.mute_channels if call == "mute" else self.n.unmute_channels)(self.other)

    def run(self, call: str, at: int) -> bool:
        """Prepare, make the call with the fault at that line, and judge. Returns whether there was such a line."""
        self.prepare(call)
        raised: list[BaseException] = []
        before = self.changed

        def made() -> None:
            try:
                self.make(call)
            except BaseException as error:
                raised.append(error)
            self.faults.returned.set()

        self.faults.returned.clear()
        self.faults.pids()  # on a connection that is there from now on
        handles = psutil.Process().num_fds()
        # The thread that waits for a reconnection runs no line of it.
        thread = threading.Thread(target=made, name="waits" if call == "reconnect" else CALLER)
        self.steps.arm(at, getattr(self.faults, self.fault))
        thread.start()
        thread.join(SECONDS[self.fault] + 10)
        assert not thread.is_alive(), f"{call} hangs after {self.fault} at {self.steps.place}"
        reached = self.steps.disarm()
        count = len(before.items)
        if raised:
            assert call == "start", (self.steps.place, raised)
            assert isinstance(raised[0], psycopg.OperationalError), raised
            assert not self.n.is_running()
            self.left_nothing(handles)
            self.faults.mend()
            self.n.start()
        wanted = (
            [self.channel] if call in ("unsubscribe", "mute", "start", "reconnect") else [self.channel, self.other]
        )
        if call in ("start", "reconnect") and "changed" in self.n.subscribers():
            wanted.append(self.other)
        self.until(lambda: self.n.status()["connected"] and self.n.active_channels() == wanted)
        if self.fault == "restart":
            self.faults.mend()
            assert not self.faults.late, f"{call} waited for a server that was down at {self.steps.place}"
            self.until(lambda: self.n.status()["connected"])
        mark = self.traffic.last_certain()
        heard = [self.stream] + ([self.changed] if self.other in wanted else [])
        self.until(lambda: all(stream.last > mark for stream in heard))
        self.faults.mend()
        sent = [one for one in self.traffic.sent() if one.number <= mark]
        for stream in heard:
            assert not (found := judge(stream, sent).problems), (self.fault, self.steps.place, found[:5])
        if call in ("unsubscribe", "mute"):
            assert len(before.items) <= count + 1, "a call began after it had returned"
        return reached

    def left_nothing(self, handles: int) -> None:
        """start() has raised: no thread, session or file descriptor is left."""
        until(lambda: not [t for t in threading.enumerate() if t.name.startswith("pgnotifier-")], 3)
        if self.fault == "kill":
            until(lambda: not self.faults.pids(), 3)
            until(lambda: psutil.Process().num_fds() <= handles, 3)


@contextmanager
def playing(db: Server, channel: str, rng: random.Random, fault: str) -> Iterator[Play]:
    faults, steps = Faults(db, rng), Steps()
    with (
        steps,
        Traffic(db.dsn, [channel, f"{channel}_other"]) as traffic,
        Notifier(f"{db.dsn} application_name={NAME}", heartbeat=HEARTBEAT, retry_delay=(0.001, 0.01)) as n,
    ):
        play = Play(n, channel, traffic, faults, steps, fault)
        try:
            yield play
            steps.__exit__()
            assert_whole(traffic, play.stream)
        finally:
            faults.mend()
            faults.close()


@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", ["kill", "freeze", "restart"])
def test_at_every_line(db: Server, channel: str, rng: random.Random, call: str, fault: str) -> None:
    """The call returns, or start() raises; it listens again; nothing is lost without a gap; nothing is left."""
    with playing(db, channel, rng, fault) as play:
        counts = []
        for _ in range(3):
            assert not play.run(call, -1)
            counts.append(play.steps.count)  # with traffic it varies
        lines = max(counts) if LONG else min(counts)
        assert lines > 100
        places = list(range(1, lines + 20)) if LONG else sorted(rng.sample(range(1, lines), PLACES[fault]))
        reached = [play.run(call, place) for place in places]
        print(f"{call}: {lines} lines, {fault} at {sum(reached)} of them, {play.faults.hit} met a session")
        assert sum(reached) >= len(reached) // 2 or fault != "kill"
