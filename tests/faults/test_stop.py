"""`stop()` takes less than one second whatever the network does (guarantee 11)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from conftest import until
from pgnotifier import Notifier

from .proxy import Proxy

BOUND = 1.0


@contextlib.contextmanager
def stopping(n: Notifier) -> Iterator[None]:
    """Bring `n` into a state in the block's body; then it is stopped, in time, and could be started again."""
    try:
        yield
        since = time.monotonic()
        n.stop()
        assert time.monotonic() - since < BOUND
        assert not n.is_running()
        assert not n.status()["connected"]
    finally:
        n.stop()


@pytest.mark.parametrize("how", ["silent", "deaf"])
def test_while_connecting_to_a_deaf_server(proxy: Proxy, how: str) -> None:
    """Guarantee 11: the attempt is given up, whether nobody answers or the network holds the answer."""
    n = Notifier(proxy.dsn, retry_delay=(0.01, 0.05))
    with stopping(n):
        accepted = proxy.accepted
        if how == "silent":
            proxy.accept("silent")
        else:
            proxy.deafen()
        proxy.reset()
        until(lambda: proxy.accepted > accepted)


def test_while_backing_off(proxy: Proxy) -> None:
    """Guarantee 10: every wait can be ended by `stop()`."""
    n = Notifier(proxy.dsn, retry_delay=(30.0, 30.0))
    with stopping(n):
        proxy.refuse()
        proxy.reset()
        until(lambda: not n.status()["connected"])
        time.sleep(0.2)  # it waits for its next attempt


def test_while_a_heartbeat_waits_for_its_answer(proxy: Proxy) -> None:
    """Guarantee 11: the deadline of the heartbeat is not that of `stop()`."""
    n = Notifier(proxy.dsn, heartbeat=2.0)
    with stopping(n):
        proxy.deafen(to_server=False)
        passed = proxy.to_server.passed
        until(lambda: proxy.to_server.passed > passed)


def test_while_idle_on_a_deaf_network(proxy: Proxy) -> None:
    """Guarantee 11: closing waits for no answer."""
    n = Notifier(proxy.dsn, heartbeat=None)
    with stopping(n):
        proxy.deafen()


@pytest.mark.parametrize("heartbeat", [30.0, None])
def test_while_another_thread_subscribes(proxy: Proxy, channel: str, heartbeat: float | None) -> None:
    """Guarantee 11: its change of channels is abandoned, and that call returns too."""
    n = Notifier(proxy.dsn, heartbeat=heartbeat)
    failed: list[BaseException] = []

    def subscribe() -> None:
        try:
            n.subscribe("s", channel, print)
        except BaseException as error:
            failed.append(error)

    other = threading.Thread(target=subscribe)
    with stopping(n):
        proxy.deafen(to_server=False)
        passed = proxy.to_server.passed
        other.start()
        until(lambda: proxy.to_server.passed > passed)
    other.join(BOUND)
    assert not other.is_alive()
    assert failed == []


def test_start_after_it(proxy: Proxy, channel: str) -> None:
    """Guarantee 11: a notifier that was stopped in the middle of a fault starts as if there had been none."""
    n = Notifier(proxy.dsn, retry_delay=(0.01, 0.05))
    heard: list[object] = []
    with stopping(n):
        n.subscribe("s", channel, lambda *a: heard.append(a[2]))
        proxy.refuse()
        proxy.reset()
        until(lambda: not n.status()["connected"])
    proxy.heal()
    with n:
        n.start()
        n.notify(channel, 1)
        until(lambda: heard == [1])
