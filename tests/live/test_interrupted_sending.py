"""`notify()` that Ctrl-C, signal handlers, finalizers or other threads interrupt (guarantees 11 and 13)."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from conftest import until
from pgnotifier import Notifier

Conn = psycopg.Connection[Any]
posix = pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a thread")


class Heard:
    def __init__(self, n: Notifier, channel: str) -> None:
        self.count: Counter[Any] = Counter()
        self.pids: set[int] = set()
        self.last: Any = None
        n.subscribe("heard", channel, self)

    def __call__(self, id: object, channel: str, payload: Any, pid: int) -> None:
        self.count[payload] += 1
        self.pids.add(pid)
        self.last = payload


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Sets what SIGUSR1 does in the main thread."""
    before = signal.getsignal(signal.SIGUSR1)

    def handle(f: Callable[[], object]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: f())

    yield handle
    signal.signal(signal.SIGUSR1, before)


class Signals:
    """While the block runs, SIGUSR1 comes to the main thread at random moments, `number` times; `sent` are."""

    def __init__(self, number: int, longest: float) -> None:
        self.number, self.longest = number, longest
        self.sent = 0
        self.done = threading.Event()
        self._random = random.Random(4)

    def __enter__(self) -> Signals:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.number = 0
        self._thread.join()

    def _run(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while self.sent < self.number:
            time.sleep(self._random.uniform(0, self.longest))
            signal.pthread_kill(main, signal.SIGUSR1)
            self.sent += 1
        self.done.set()


def sessions(sender: Conn, name: str) -> int:
    rows = sender.execute("select count(*) from pg_stat_activity where application_name = %s", (name,)).fetchall()
    return int(rows[0][0])


@posix
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ctrl-C in a finalizer
def test_ctrl_c_a_thousand_times(
    server: str, sender: Conn, channel: str, on_signal: Callable[[Callable[[], object]], None]
) -> None:
    """Guarantee 11: what Ctrl-C has cut short keeps no later call, in any thread, from being sent at once."""
    inside = False
    interrupted = 0

    def handler() -> None:
        if inside:
            raise KeyboardInterrupt

    on_signal(handler)
    with Notifier(make_conninfo(server, application_name=channel)) as n:
        heard = Heard(n, channel)
        with Signals(1000, 0.003) as signals:
            while not signals.done.is_set():
                try:
                    inside = True
                    n.notify(channel, "x")
                    inside = False
                except KeyboardInterrupt:
                    inside = False
                    interrupted += 1
        print(f"{interrupted} interrupted, {heard.count['x']} heard")
        assert interrupted > 300
        since = time.monotonic()
        n.notify(channel, "here")
        other = threading.Thread(target=n.notify, args=(channel, "there"))
        other.start()
        other.join(5)
        assert time.monotonic() - since < 2
        until(lambda: heard.count["here"] == heard.count["there"] == 1)
        until(lambda: sessions(sender, channel) <= 3)
    until(lambda: sessions(sender, channel) == 0)


@posix
def test_in_a_signal_handler_within_itself(
    server: str, sender: Conn, channel: str, on_signal: Callable[[Callable[[], object]], None]
) -> None:
    """Guarantee 11: the inner call does not wait for the outer one; each is sent once."""
    inner = 0
    longest = 0.0
    nested = 0
    depth = 0

    def handler() -> None:
        nonlocal inner, longest, nested, depth
        if depth > 3:  # each needs a session of its own, and a server has not very many
            return
        number = inner = inner + 1
        nested += depth > 0
        depth += 1
        since = time.monotonic()
        n.notify(channel, f"inner {number}")
        longest = max(longest, time.monotonic() - since)
        depth -= 1

    with Notifier(make_conninfo(server, application_name=channel)) as n:
        heard = Heard(n, channel)
        on_signal(handler)
        outer = 0
        with Signals(400, 0.008) as signals:
            while not signals.done.is_set():
                outer += 1
                depth += 1
                n.notify(channel, f"outer {outer}")
                depth -= 1
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert nested > 100
        assert longest < 2
        sent = Counter([*(f"inner {i + 1}" for i in range(inner)), *(f"outer {i + 1}" for i in range(outer))])
        until(lambda: heard.count == sent)
        until(lambda: sessions(sender, channel) <= 5)
    until(lambda: sessions(sender, channel) == 0)


@posix
def test_stop_in_a_signal_handler_within_it(
    server: str, sender: Conn, channel: str, on_signal: Callable[[Callable[[], object]], None]
) -> None:
    """Guarantee 11: the call ends, or raises, and no session is left."""
    n = Notifier(make_conninfo(server, application_name=channel))
    on_signal(n.stop)
    for number in range(30):
        n.start()
        with Signals(1, 0.002 if number % 2 else 0.0) as signals:
            while not signals.done.is_set():
                try:
                    n.notify(channel)
                except psycopg.OperationalError:
                    break
        n.stop()
        until(lambda: sessions(sender, channel) == 0)


def test_in_a_finalizer_within_itself(server: str, channel: str) -> None:
    """Guarantee 11: the collector runs it wherever objects are made."""
    made = 0

    class Notifies:
        def __init__(self) -> None:
            nonlocal made
            made += 1
            self.itself, self.number = self, made

        def __del__(self) -> None:
            n.notify(channel, f"last of {self.number}")

    before = gc.get_threshold()
    with Notifier(server) as n:
        heard = Heard(n, channel)
        gc.set_threshold(7, 1, 1)
        try:
            for number in range(200):
                Notifies()
                n.notify(channel, number)
        finally:
            gc.set_threshold(*before)
        sent = Counter([*range(200), *(f"last of {i + 1}" for i in range(made))])
        # A collection under way in another thread makes this one return at once.
        until(lambda: (gc.collect(), heard.count == sent)[1])


def test_threads_share_one_session(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 13: a connection of its own, however many threads send, and each of them comes to it soon."""
    greedy = threading.Event()
    slowest = [0.0] * 8

    def send(index: int) -> None:
        for number in range(25):
            since = time.monotonic()
            n.notify(channel, f"{index} {number}")
            slowest[index] = max(slowest[index], time.monotonic() - since)

    def send_without_pause() -> None:
        while not greedy.is_set():
            n.notify(channel, "more")

    with Notifier(make_conninfo(server, application_name=channel)) as n:
        heard = Heard(n, channel)
        threads = [threading.Thread(target=send, args=(index,)) for index in range(8)]
        other = threading.Thread(target=send_without_pause)
        other.start()
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            greedy.set()
            other.join()
        print(f"the slowest took {max(slowest):.3f} s")
        assert max(slowest) < 5
        until(lambda: sum(heard.count.values()) - heard.count["more"] == 200)
        assert len(heard.pids) == 1
        assert sessions(sender, channel) == 2


def test_what_callbacks_send_while_all_is_stopped(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 13: `stop()` closes the connection that they send on, also where they are drained."""
    with Notifier(make_conninfo(server, application_name=channel)) as n:
        begun = threading.Event()

        def fn(id: object, name: str, payload: Any, pid: int) -> None:
            begun.set()
            time.sleep(0.05)
            n.notify(f"{channel}_b", payload)

        n.subscribe(1, channel, fn)
        for number in range(5):
            n.notify(channel, number)
        assert begun.wait(5)
        until(lambda: n.status()["received"] == 5)
        n.stop(drain=True)
        assert n.status()["delivered"] == 5
        until(lambda: sessions(sender, channel) == 0)


def test_it_works_while_stopped(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 13: whether or not the listener runs."""
    with Notifier(server) as hears, Notifier(make_conninfo(server, application_name=channel)) as n:
        heard = Heard(hears, channel)
        for _ in range(3):
            n.stop()
            until(lambda: sessions(sender, channel) == 0)
            n.notify(channel, os.getpid())
        until(lambda: heard.count == Counter({os.getpid(): 3}))
