"""Guarantees 2, 8, 11: `health()`, what `status()` says of failures and stuck calls, `repr`; loud by default."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

import pgnotifier
from conftest import until
from pgnotifier import AsyncNotifier, Gap, Health, Notifier
from pgnotifier.delivery.workers import Workers
from pgnotifier.testing import AsyncMemoryNotifier, MemoryNotifier

Conn = psycopg.Connection[Any]


@pytest.fixture(params=["real", "memory"])
def n(request: pytest.FixtureRequest) -> Iterator[Notifier]:
    """Running, with two workers."""
    if request.param == "real":
        made = Notifier(request.getfixturevalue("server"), workers=2)
    else:
        made = MemoryNotifier(workers=2)
    with made as n:
        yield n


@contextmanager
def stuck(n: Notifier, channel: str, id: str = "slow") -> Iterator[None]:
    """A call that does not return before the end of the block."""
    begun, release = threading.Event(), threading.Event()
    n.subscribe(id, channel, lambda *a: (begun.set(), release.wait(20)))
    n.notify(channel)
    try:
        assert begun.wait(10)
        yield
    finally:
        release.set()


def test_a_notifier_that_works(n: Notifier) -> None:
    assert n.health() == Health(live=True, ready=True, problems=())
    n.stop()
    assert n.health() == Health(False, False, ("the notifier is stopped",))
    n.start()
    assert n.health().ready


def test_a_call_that_runs_too_long(n: Notifier, channel: str) -> None:
    with stuck(n, channel):
        assert n.health() == (True, True, ())
        until(lambda: not n.health(max_call=0.05).live)
        live, ready, (problem,) = n.health(max_call=0.05)
        assert (live, ready) == (False, False)
        assert problem.startswith("subscriber 'slow' has been running for ")
        assert problem.endswith(f" s on channel {channel!r}, longer than 0.05 s")
        assert n.health(float("inf")).ready
    until(lambda: n.health(max_call=0.05).ready)
    assert not any(box.began for box in n._dispatcher.boxes.values())  # or the next call would seem to begin there


def test_the_longest_call(n: Notifier, channel: str) -> None:
    """Of two, the one that began first; none between calls."""
    assert n.status()["longest_call"] is None
    with stuck(n, channel):
        until(lambda: n.status()["longest_call"][2] > 0.05)
        with stuck(n, f"{channel}b", "other"):
            id, name, seconds = n.status()["longest_call"]
            assert (id, name) == ("slow", channel)
            assert 0.05 < seconds < 20
            n.unsubscribe("slow", channel)  # the call runs on
            assert n.status()["longest_call"][0] == "slow"
    until(lambda: n.status()["longest_call"] is None)


def test_the_longest_call_of_a_batch_begins_with_itself(n: Notifier, channel: str) -> None:
    """Not with the turn of its worker: the calls before it do not count."""
    seen: list[float] = []

    def fn(id: str, channel: str, payload: int, pid: int) -> None:
        threading.Event().wait(0.05)
        seen.append(n.status()["longest_call"][2])

    n.subscribe("s", channel, lambda *a: threading.Event().wait(0.3))
    n.notify(channel, 0)
    n.subscribe("s", channel, fn)
    for number in range(8):
        n.notify(channel, number)
    until(lambda: len(seen) == 8)
    assert min(seen) > 0.04
    assert max(seen) < 0.3


def test_an_on_listen_and_a_coroutine_are_calls_too(server: str, channel: str) -> None:
    release = threading.Event()
    with Notifier(server) as n:
        n.subscribe("first", channel, print, on_listen=lambda *a: release.wait(10))
        until(lambda: (n.status()["longest_call"] or "")[:2] == ("first", channel))
        release.set()
        until(lambda: n.status()["longest_call"] is None)

    async def main() -> None:
        begun, end = asyncio.Event(), asyncio.Event()

        async def fn(id: Any, channel: str, payload: Any, pid: int) -> None:
            begun.set()
            await end.wait()

        async with AsyncNotifier(server) as n:
            await n.subscribe("task", channel, fn)
            await n.notify(channel)
            await begun.wait()
            while not (n.status()["longest_call"] or ("", "", 0))[2] > 0.02:
                await asyncio.sleep(0.005)
            assert n.status()["longest_call"][:2] == ("task", channel)
            assert not n.health(max_call=0.01).live
            end.set()
            while n.status()["longest_call"] is not None:
                await asyncio.sleep(0.005)
            assert n.health(max_call=0.01) == (True, True, ())
            assert not any(box.began for box in n._notifier._dispatcher.boxes.values())

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_call_on_an_event_loop_that_was_closed_is_no_call(server: str, channel: str) -> None:
    with Notifier(server) as n:

        async def main() -> None:
            begun = asyncio.Event()

            async def fn(*args: Any) -> None:
                begun.set()
                await asyncio.sleep(60)

            n.subscribe("task", channel, fn)
            n.notify(channel)
            await begun.wait()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.close()
        n.subscribe("task", channel, print)
        n.notify(channel)
        until(lambda: n.status()["longest_call"] is None)


def test_health_of_a_lost_connection(server: str, sender: Conn) -> None:
    """Live all the while, and ready again afterwards; the reason is the server's own."""
    conf: list[Any] = [server]
    with Notifier(lambda: conf[0], retry_delay=(0.01, 0.05)) as n:
        conf[0] = "host=127.0.0.1 port=1 connect_timeout=2"
        sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
        until(lambda: "refused" in str(n.health().problems))
        live, ready, (problem,) = n.health()
        assert (live, ready) == (True, False)
        assert problem.startswith("not connected since ")
        assert " UTC: OperationalError: connection failed" in problem
        assert "reconnecting" in repr(n)
        conf[0] = server
        until(lambda: n.health() == (True, True, ()))


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Another thread has it until the end of the block."""
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert taken.wait(5)
        yield
    finally:
        release.set()
        holder.join()


def test_health_of_a_listener_that_hangs(server: str, sender: Conn, channel: str) -> None:
    """It looks for no answer to the heartbeat any more, and so does not find out itself."""
    with Notifier(server, heartbeat=0.2) as n:
        n.subscribe("s", channel, print)
        with held(n._dispatcher.lock):
            sender.execute("select pg_notify(%s, '')", [channel])
            until(lambda: not n.health().ready)
            live, ready, (problem,) = n.health()
            assert (live, ready) == (True, False)
            assert problem.startswith("no answer from the server for ")
            assert n.status()["connected"]
        until(lambda: n.health() == (True, True, ()))


def test_health_takes_microseconds_and_no_lock(server: str) -> None:
    with Notifier(server) as n:
        for number in range(1_000):
            n.subscribe(number, "a", print, autorun=False)
        with held(n._dispatcher.lock):
            assert n.health() == (True, True, ())
            assert n.status()["running"]
            assert "channels=1, subscribers=1000" in repr(n)
            assert min(timeit.repeat(n.health, number=100, repeat=5)) < 100 * 100e-6


@pytest.mark.parametrize("bad", [None, "60", float("nan")])
def test_max_call_is_a_number_of_seconds(bad: Any) -> None:
    n = MemoryNotifier(autostart=False)
    with pytest.raises(ValueError, match="max_call must be a number of seconds, not"):
        n.health(bad)


# -- status -----------------------------------------------------------------------------------------------------


def test_the_last_failure(n: Notifier, channel: str) -> None:
    """Of a callback, an `on_listen` and the decoder, one after the other."""
    assert n.status()["last_failure"] is None

    def fail(*args: Any) -> None:
        raise ValueError(f"on purpose\n{len(args)}")

    n.subscribe("s", channel, fail)
    n.notify(channel)
    until(lambda: n.status()["last_failure"] == "ValueError: on purpose 4")
    n.subscribe("t", channel, print, on_listen=fail)
    until(lambda: n.status()["last_failure"] == "ValueError: on purpose 3")
    n.stop()
    assert n.status()["last_failure"] == "ValueError: on purpose 3"


def test_the_last_failure_of_the_decoder(server: str, channel: str) -> None:
    def decode(text: str) -> Any:
        raise KeyError(text)

    with Notifier(server, decode=decode) as n:
        n.subscribe("s", channel, print)
        n.notify(channel, "x")
        until(lambda: n.status()["last_failure"] == "KeyError: 'x'")


def test_confirmed(server: str, sender: Conn, channel: str) -> None:
    """It moves with each heartbeat, stays with the loss, and never comes before what has not arrived."""
    n = Notifier(server, autostart=False, heartbeat=0.05)
    assert n.status()["confirmed"] is None
    n.start()
    first = n.status()["confirmed"]
    assert first is not None
    assert timedelta(0) <= datetime.now(timezone.utc) - first < timedelta(seconds=5)
    until(lambda: n.status()["confirmed"] > first)
    n.stop()
    last = n.status()["confirmed"]
    assert last > first
    gaps: list[Gap | None] = []
    n.subscribe("s", channel, print, on_listen=lambda id, channel, gap: gaps.append(gap))
    n.start()
    assert n.status()["confirmed"] > last
    n.stop()


# -- repr -------------------------------------------------------------------------------------------------------


def test_repr(server: str) -> None:
    """State, server, number of channels and subscribers; for a callable the server as soon as it is known."""
    n = Notifier("postgresql://ada:hunter22@db.example/app", autostart=False)
    assert repr(n) == "<Notifier stopped, ada@db.example:5432/app, channels=0, subscribers=0>"
    n = Notifier({"host": "db.example", "password": "hunter22", "port": 5433}, autostart=False)
    assert "@db.example:5433/" in repr(n)
    assert "hunter22" not in repr(n)
    n = Notifier("postgresql://ada:hunter22@x@db.example/app", autostart=False)
    assert repr(n) == "<Notifier stopped, a dbconf that libpq can't read, channels=0, subscribers=0>"

    def credentials() -> str:
        return server

    n = Notifier(credentials, autostart=False)
    assert ".credentials(), channels=0" in repr(n)
    with n:
        n.subscribe(1, ("a"), print)
        n.subscribe(2, "a", print)
        assert repr(n).startswith("<Notifier listening, postgres@/")
        assert repr(n).endswith("/postgres, channels=1, subscribers=2>")


def test_repr_of_the_others() -> None:
    async def main() -> None:
        async with AsyncMemoryNotifier() as n:
            assert repr(n) == "<AsyncMemoryNotifier listening, test@memory:0/test, channels=0, subscribers=0>"
            async with n.listen("orders", id="billing") as stream:
                assert repr(stream) == "<stream of 'orders'>"
            assert repr(stream) == "<stream of 'orders' (closed)>" or "closed" in repr(stream)
            health = n.health()
            assert health == (True, True, ())
        assert not n.health(5).live

    asyncio.run(asyncio.wait_for(main(), 20))
    assert repr(AsyncNotifier("host=x")) == repr(Notifier("host=x", autostart=False)).replace("<", "<Async", 1)


# -- loud by default --------------------------------------------------------------------------------------------


def test_without_configuration_failures_are_on_standard_error(server: str) -> None:
    """Guarantee 8: no handler of the library's own, and no silence."""
    code = """if True:
        import logging, sys
        from pgnotifier import Notifier
        assert logging.getLogger("pgnotifier").handlers == []
        with Notifier(sys.argv[1]) as n:
            n.subscribe("billing", "orders", lambda *a: 1 / 0)
            n.notify("orders")
            while not n.status()["failed"]:
                n.wait(0.01)
        """
    done = subprocess.run([sys.executable, "-c", code, server], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "subscriber 'billing' failed on channel 'orders'"
    assert lines[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("fn", [lambda: None, lambda a: None, lambda a, b, c: None, lambda a, b, c, d, e: None])
def test_a_callback_with_the_wrong_number_of_arguments(n: Notifier, fn: Any, channel: str) -> None:
    """Guarantee 8: `subscribe` says so, with the arguments that there are."""
    with pytest.raises(TypeError, match=r"called with 4 positional arguments \(id, channel, payload, pid\)"):
        n.subscribe("s", channel, fn)
    with pytest.raises(TypeError, match=r"on_listen is called with 3 positional arguments \(id, channel, gap\)"):
        n.subscribe("s", channel, print, on_listen=lambda: None)
    assert n.channels() == {}


def test_health_is_public() -> None:
    assert pgnotifier.Health is Health
    assert Health._fields == ("live", "ready", "problems")


@pytest.mark.parametrize("how", ["start", "stop"])
def test_a_start_or_stop_that_interrupts_the_look(server: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forced: workers that have not been started, or have ended since, are not missing."""
    n = Notifier(server)
    supervisor, missing = n._supervisor, Workers.missing.fget  # type: ignore[attr-defined]
    life = supervisor.shared.life
    assert life is not None

    def interrupted(workers: Workers) -> int:
        if how == "start":
            life.published = True
            return 1  # as counted before
        n.stop()
        return int(missing(workers))

    life.published = how == "stop"
    monkeypatch.setattr(Workers, "missing", property(interrupted))
    problems = n.health().problems
    monkeypatch.undo()
    n.stop()
    assert problems == (() if how == "start" else ("the notifier is stopped",))
