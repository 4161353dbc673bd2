"""Guarantee 12: seconds that are too large for the system's clock count as "never" or are refused; nothing spins."""

from __future__ import annotations

import threading
import time
from math import inf
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from conftest import until
from pgnotifier import Notifier

Conn = psycopg.Connection[Any]
TOO_LARGE: list[Any] = [1_000_001, 3e6, 3e9, 1e18, 1e300, 10**400, inf]


def idle(seconds: float = 0.5) -> None:
    """Nothing spins: the process uses hardly any time for so long."""
    began = time.process_time()
    time.sleep(seconds)
    assert time.process_time() - began < seconds / 4


@pytest.mark.parametrize("heartbeat", [*TOO_LARGE, 999_999], ids=lambda value: repr(value)[:10])
def test_a_long_heartbeat(server: str, sender: Conn, channel: str, heartbeat: Any) -> None:
    """The session holds, changes and deliveries work, and a lost one comes back."""
    got: list[Any] = []
    with Notifier(server, heartbeat=heartbeat) as n:
        n.subscribe("s", channel, lambda *a: got.append(a[2]))
        n.notify(channel, 1)
        until(lambda: got == [1])
        idle()
        assert n.status()["reconnects"] == 0
        assert n.status()["last_error"] is None
        sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
        until(lambda: n.status()["reconnects"] == 1)
        n.notify(channel, 2)
        until(lambda: got == [1, 2])


@pytest.mark.parametrize("delay", TOO_LARGE, ids=lambda value: repr(value)[:10])
def test_a_retry_delay_that_is_too_long(delay: Any) -> None:
    for delays in ((delay, delay), (0.1, delay)):
        with pytest.raises(ValueError, match=r"retry_delay must be .* <= 1,000,000 seconds, not \("):
            Notifier("", retry_delay=delays)


def test_the_longest_retry_delay(server: str, sender: Conn) -> None:
    with Notifier(server, retry_delay=(1e6, 1e6)) as n:
        sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
        until(lambda: not n.status()["connected"])
        idle()
        began = time.monotonic()
        n.stop()
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("seconds", [*TOO_LARGE, 0, -1, -inf], ids=lambda value: repr(value)[:10])
@pytest.mark.parametrize("drain", [False, True])
def test_stop_takes_any_number_of_seconds(server: str, channel: str, seconds: Any, drain: bool) -> None:
    """It waits for the callback that is running, or not at all."""
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def heard(*_: Any) -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    with Notifier(server) as n:
        n.subscribe("s", channel, heard)
        n.notify(channel)
        assert begun.wait(10)
        if seconds > 0:
            threading.Timer(0.05, go_on.set).start()
        n.stop(seconds, drain=drain)
        assert ended.is_set() == (seconds > 0)
        assert not n.is_running()
        go_on.set()


@pytest.mark.parametrize("seconds", TOO_LARGE, ids=lambda value: repr(value)[:10])
def test_wait_takes_any_number_of_seconds(server: str, seconds: Any) -> None:
    with Notifier(server) as n:
        answers: list[bool] = []
        waiting = threading.Thread(target=lambda: answers.append(n.wait(seconds)))
        waiting.start()
        idle(0.2)
        assert not answers
        n.stop()
        waiting.join(35)
        assert answers == [True]
        assert n.wait(seconds)


def test_what_is_no_number_of_seconds_is_refused(server: str) -> None:
    nan = float("nan")
    with Notifier(server) as n:
        for bad in ("1", nan, True, [1]):
            with pytest.raises(ValueError, match=r"timeout must be a number of seconds"):
                n.wait(bad)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match=r"timeout must be a number of seconds"):
                n.stop(bad)  # type: ignore[arg-type]
        assert n.is_running()
        assert not n.wait(-inf)


def test_a_long_connect_timeout(server: str, channel: str) -> None:
    conf: dict[str, Any] = {**conninfo_to_dict(server), "connect_timeout": 2_000_000_000}
    got: list[Any] = []
    with Notifier(conf) as n:
        n.subscribe("s", channel, lambda *a: got.append(a[2]))
        n.notify(channel, 1)
        until(lambda: got == [1])
