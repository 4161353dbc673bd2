"""Guarantees 5, 8 and 11: any method, at any time, from any thread, and from inside a callback."""

from __future__ import annotations

import faulthandler
import logging
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier, StreamClosed, UnknownChannel, UnknownSubscriber

Conn = psycopg.Connection[Any]
SYSCHAN = Notifier.SYSCHAN
PUBLIC = {name for name in dir(Notifier) if not name.startswith("_") and callable(getattr(Notifier, name))}


def end_of(threads: list[threading.Thread], timeout: float) -> None:
    """Wait for the threads' end; where they do not come to it, show where each stands."""
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            faulthandler.dump_traceback()
            raise AssertionError(f"{thread.name} did not come to its end")


# -- (a) everything at once ------------------------------------------------------------------------------------


class Chaos:
    """Random calls on one notifier, from threads and from its callbacks, until `over`."""

    def __init__(self, n: Notifier, prefix: str, seed: int) -> None:
        self.n, self.seed = n, seed
        self.names = [f"{prefix}_{k}" for k in range(4)]
        self.made: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.inside = 0  # callbacks that call methods now
        self.heard = 0
        self.rng = random.Random(seed)  # of the callbacks, under the lock

    def callback(self, id: Any, channel: str, payload: Any, pid: int) -> None:
        with self.lock:
            self.heard += 1
            if self.over.is_set() or self.rng.random() < 0.4:
                return
            self.inside += 1
            rng = random.Random(self.rng.random())
        try:
            self.call(rng, "callback")
        finally:
            with self.lock:
                self.inside -= 1

    def thread(self, number: int) -> None:
        rng = random.Random(self.seed + number)
        while not self.over.is_set():
            self.call(rng, "thread")

    def call(self, rng: random.Random, where: str) -> None:
        n = self.n
        name, some = rng.choice([*self.names, SYSCHAN]), rng.sample(self.names, rng.randrange(3))
        id, autorun = rng.randrange(5), rng.random() < 0.7
        calls: dict[str, Callable[[], Any]] = {
            "active_channels": n.active_channels,
            "add_channels": lambda: n.add_channels(some),
            "channels": n.channels,
            "health": n.health,
            "is_running": n.is_running,
            "listen": lambda: self.listen(some or [name], id, rng.random() < 0.5),
            "mute_channels": lambda: n.mute_channels(some),
            "mute_subscriber": lambda: n.mute_subscriber(id, some),
            "muted_channels": lambda: n.muted_channels(some),
            "muted_subscribers": lambda: n.muted_subscribers(some),
            "non_muted_channels": lambda: n.non_muted_channels(some),
            "non_muted_subscribers": lambda: n.non_muted_subscribers(some),
            "notify": lambda: n.notify(name, [id, name]),
            "remove_channels": lambda: n.remove_channels(some, autorun),
            "restart": n.restart,
            "start": n.start,
            "status": n.status,
            "stop": n.stop,
            "subscribe": lambda: n.subscribe(id, name, self.callback, autorun),
            "subscribers": n.subscribers,
            "unmute_channels": lambda: n.unmute_channels(some),
            "unmute_subscriber": lambda: n.unmute_subscriber(id, some),
            "unsubscribe": lambda: n.unsubscribe(id, name, autorun),
            "wait": lambda: n.wait(0),
        }
        assert calls.keys() == PUBLIC
        method = rng.choice([*calls, "subscribe", "subscribe", "notify", "start"])
        try:
            calls[method]()
        except (UnknownChannel, UnknownSubscriber):
            pass
        except BaseException as error:
            # stop() closes the sending connection too, and gives a send half a second to end.
            if not (method == "notify" and "given up" in str(error)):
                self.errors.append(error)
                raise
        with self.lock:
            self.made[f"{method} in a {where}"] += 1

    def listen(self, names: list[str], id: int, closes: bool) -> None:
        try:
            stream = self.n.listen(*names, id=("stream", id) if closes else None)
        except ValueError:
            return  # the id is taken
        try:
            stream.get(0)
        except (TimeoutError, StreamClosed):
            pass
        if closes:  # otherwise Python does
            stream.close()

    def from_callbacks(self) -> int:
        with self.lock:
            return sum(count for method, count in self.made.items() if method.endswith("callback"))


@pytest.mark.parametrize("workers", [1, 3])
def test_eight_threads_call_everything_at_once(server: str, sender: Conn, channel: str, workers: int) -> None:
    """Guarantee 5: none deadlocks; what is left afterwards is a notifier that hears."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with Notifier(server, workers=workers) as n:
        chaos = Chaos(n, channel, seed)
        threads = [threading.Thread(target=chaos.thread, args=(k,), daemon=True) for k in range(8)]
        for thread in threads:
            thread.start()
        chaos.over.wait(3)
        until(lambda: chaos.errors or chaos.from_callbacks() > 20, 60)  # a loaded machine takes longer
        chaos.over.set()
        end_of(threads, 30)
        until(lambda: chaos.inside == 0)
        print(chaos.heard, "heard,", sum(chaos.made.values()), "calls:", dict(chaos.made))
        assert chaos.errors == []
        assert {method.split()[0] for method in chaos.made if method.endswith("thread")} == PUBLIC

        got: list[Any] = []
        n.start()
        n.subscribe("fresh", channel, lambda *a: got.append(a))
        sender.execute("select pg_notify(%s, 'heard')", (channel,))
        until(lambda: got == [("fresh", channel, "heard", sender.info.backend_pid)])
        channels, subscribers = n.channels(), n.subscribers()
        assert n.active_channels() == sorted(
            c
            for c, entry in channels.items()
            if c != SYSCHAN and not entry["mute"] and any(not sub["mute"] for sub in entry["subscribers"].values())
        )
        assert {(id, c) for id, entry in subscribers.items() for c in entry["channels"]} == {
            (id, c) for c, entry in channels.items() for id in entry["subscribers"]
        }
    assert not n.is_running()


# -- (b) every method from inside a callback -------------------------------------------------------------------

Case = tuple[Callable[[Notifier, str], Any], Callable[[Notifier, str], object]]


def stop_and_start(n: Notifier, own: str) -> None:
    n.stop()
    n.start()


INSIDE: dict[str, Case] = {  # what the callback calls, for its own channel, and what is true afterwards
    "active_channels": (lambda n, own: n.active_channels(), lambda n, own: True),
    "add_channels": (lambda n, own: n.add_channels("new"), lambda n, own: "new" in n.channels()),
    "channels": (lambda n, own: n.channels(), lambda n, own: True),
    "health": (lambda n, own: n.health(), lambda n, own: n.health().live),
    "is_running": (lambda n, own: n.is_running(), lambda n, own: True),
    "listen": (lambda n, own: n.listen("new").close(), lambda n, own: "new" not in n.channels()),
    "mute_channels": (lambda n, own: n.mute_channels("other"), lambda n, own: n.muted_channels() == ["other"]),
    "mute_channels its own": (lambda n, own: n.mute_channels(own), lambda n, own: own not in n.active_channels()),
    "mute_channels all": (lambda n, own: n.mute_channels(), lambda n, own: n.active_channels() == []),
    "mute_subscriber": (lambda n, own: n.mute_subscriber("b"), lambda n, own: n.muted_subscribers("other")["other"]),
    "mute_subscriber itself": (
        lambda n, own: n.mute_subscriber("a"),
        lambda n, own: n.active_channels() == ["other"],
    ),
    "muted_channels": (lambda n, own: n.muted_channels(), lambda n, own: True),
    "muted_subscribers": (lambda n, own: n.muted_subscribers(), lambda n, own: True),
    "non_muted_channels": (lambda n, own: n.non_muted_channels(), lambda n, own: True),
    "non_muted_subscribers": (lambda n, own: n.non_muted_subscribers(), lambda n, own: True),
    "notify": (lambda n, own: n.notify("other", "x"), lambda n, own: n.status()["received"] >= 2),
    "notify its own": (lambda n, own: n.notify(own, "x"), lambda n, own: n.status()["received"] >= 2),
    "remove_channels": (lambda n, own: n.remove_channels("other"), lambda n, own: "other" not in n.channels()),
    "remove_channels its own": (lambda n, own: n.remove_channels(own), lambda n, own: own not in n.channels()),
    "restart": (lambda n, own: n.restart(), lambda n, own: n.is_running()),
    "start": (lambda n, own: n.start(), lambda n, own: n.is_running()),
    "status": (lambda n, own: n.status(), lambda n, own: True),
    "stop": (lambda n, own: n.stop(), lambda n, own: not n.is_running()),
    "stop and start": (stop_and_start, lambda n, own: n.is_running()),
    "subscribe": (lambda n, own: n.subscribe("c", "new", print), lambda n, own: "new" in n.active_channels()),
    "subscribe itself": (lambda n, own: n.subscribe("a", own, print), lambda n, own: n.channels()[own]["active"]),
    "subscribers": (lambda n, own: n.subscribers(), lambda n, own: True),
    "unmute_channels": (lambda n, own: n.unmute_channels(), lambda n, own: len(n.active_channels()) == 2),
    "unmute_subscriber": (lambda n, own: n.unmute_subscriber("a"), lambda n, own: len(n.active_channels()) == 2),
    "unsubscribe": (lambda n, own: n.unsubscribe("b", "other"), lambda n, own: n.active_channels() == [own]),
    "unsubscribe itself": (lambda n, own: n.unsubscribe("a", own), lambda n, own: n.active_channels() == ["other"]),
    "wait": (lambda n, own: n.wait(0.01), lambda n, own: True),
}


def test_every_public_method_has_its_case() -> None:
    """Guarantee 5."""
    assert {name.split()[0] for name in INSIDE} == PUBLIC


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", INSIDE)
def test_from_inside_a_callback(server: str, sender: Conn, channel: str, case: str, workers: int) -> None:
    """Guarantees 5 and 11: no method deadlocks there, stop() included, and what it does is done."""
    call, then = INSIDE[case]
    errors: list[BaseException] = []
    done = threading.Event()
    got: list[Any] = []

    with Notifier(server, workers=workers) as n:

        def callback(*_: Any) -> None:
            if not done.is_set():
                try:
                    call(n, channel)
                except BaseException as error:
                    errors.append(error)
                done.set()

        n.subscribe("a", channel, callback)
        n.subscribe("b", "other", lambda *_: None)
        sender.execute("select pg_notify(%s, '')", (channel,))
        if not done.wait(10):
            faulthandler.dump_traceback()
            pytest.fail(f"{case} has not returned")
        assert errors == []
        until(lambda: then(n, channel), 5)
        assert n.is_running() is (case != "stop")
        assert n.wait(0) is (case == "stop")
        n.start()
        n.subscribe("fresh", channel, lambda *a: got.append(a[2]))
        n.unmute_channels()
        sender.execute("select pg_notify(%s, '1')", (channel,))
        until(lambda: got == [1])


def test_stop_from_a_callback_waits_for_no_callback(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 11: nor for one that hangs on another worker."""
    hanging, release, stopped = threading.Event(), threading.Event(), threading.Event()

    def hang(*_: Any) -> None:
        hanging.set()
        release.wait(30)

    with Notifier(server, workers=2) as n:
        try:

            def stop(*_: Any) -> None:
                n.stop()
                stopped.set()

            n.subscribe("hang", channel, hang)
            n.subscribe("stop", channel + "stop", stop)
            sender.execute("select pg_notify(%s, '')", (channel,))
            assert hanging.wait(10)
            sender.execute("select pg_notify(%s, '')", (channel + "stop",))
            assert stopped.wait(5)
            assert not n.is_running()
        finally:
            release.set()


# -- (c) a callback that wants the process to end --------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("on_syschan", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_callback_stops_the_notifier(
    server: str,
    sender: Conn,
    channel: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    on_syschan: bool,
    workers: int,
) -> None:
    """Guarantee 8: cleanly, and says so in the log."""
    hooked: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", hooked.append)
    events: list[Any] = []
    got: list[Any] = []

    def interrupt(id: Any, channel: str, payload: Any, pid: int) -> None:
        if payload == "now":
            raise error

    with Notifier(server, workers=workers) as n:
        session = n.status()["pid"]
        bad = SYSCHAN if on_syschan else channel
        n.subscribe("watch", SYSCHAN, lambda *a: events.append(a[2]))
        n.subscribe("interrupts", bad, interrupt)
        n.subscribe("good", channel + "good", lambda *a: got.append(a[2]))
        sender.execute("select pg_notify(%s, 'now')", (bad,))
        assert n.wait(10)
        assert not n.is_running()
        assert n.active_channels() == []
        until(lambda: {"event": "stopped"} in events)
        until(lambda: not sender.execute("select from pg_stat_activity where pid = %s", (session,)).fetchall())
        until(lambda: not [t for t in threading.enumerate() if t.name.startswith("pgnotifier-")])
        records = [r for r in caplog.records if r.levelno >= logging.ERROR]
        assert {r.name for r in records} == {"pgnotifier"}
        text = " ".join(r.getMessage() for r in records)
        assert error.__name__ in text
        assert "interrupts" in text

        n.start()  # what was subscribed still is
        sender.execute("select pg_notify(%s, '1')", (channel + "good",))
        until(lambda: got == [1])
    assert hooked == []
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "SystemExit(3)"])
def test_an_interrupt_in_a_callback_leaves_stderr_alone(server: str, error: str) -> None:
    """Guarantees 8 and 11: where nobody has configured logging or hooks."""
    text = f"""
        import sys
        from pgnotifier import Notifier
        def interrupt(*_):
            raise {error}
        n = Notifier(sys.argv[1])
        n.subscribe(1, "interrupts", interrupt)
        n.notify("interrupts")
        print(n.wait(10), n.is_running())
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text), server],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (0, "True False\n")
    assert "Traceback" not in done.stderr
