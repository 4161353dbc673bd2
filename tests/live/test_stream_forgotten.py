"""Guarantee 16: a stream that nobody refers to any more is closed, and leaves nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from typing import Any

import pytest

from conftest import until
from pgnotifier import Notifier
from streamed import Conn, gone, series, take


@pytest.mark.parametrize("state", ["read", "unread", "half", "cycle", "stopped", "failed"])
def test_forgotten(server: str, sender: Conn, channel: str, state: str) -> None:
    """Guarantee 16: what Python collects is closed: in the registry, on the server, and in memory."""
    with Notifier(server) as n:
        stream = n.listen(channel)
        puller = weakref.ref(stream.key)
        if state != "unread":
            take(stream, 1)
        series(sender, channel, 1, 300)
        until(lambda: n.status()["received"] == 300)
        if state == "half":
            take(stream, 10)
        elif state == "cycle":
            stream.me = stream  # type: ignore[attr-defined]
        elif state == "stopped":
            n.stop()
        elif state == "failed":
            with pytest.raises(ValueError, match="registered already"):
                n.listen(channel, id=stream)
        del stream
        gc.collect()
        if state == "stopped":
            n.start()
        until(lambda: not n.subscribers(), 3)
        gone(n, channel)
        gc.collect()
        until(lambda: puller() is None, 3)
        assert n.status()["pending"] == 0


def test_what_was_read_is_not_kept(server: str, sender: Conn, channel: str) -> None:
    """A stream that waits keeps no payload alive."""

    class Payload:
        def __init__(self, text: str) -> None:
            refs.append(weakref.ref(self))

    refs: list[weakref.ref[Any]] = []
    with Notifier(server, decode=Payload) as n:
        one, two = n.listen(channel), n.listen(channel)
        series(sender, channel, 1, 100)
        take(one, 101), take(two, 101)
        gc.collect()
        assert [r for r in refs if r() is not None] == []


@pytest.mark.parametrize("lock", [True, False])
def test_a_finalizer_under_the_state_lock(server: str, channel: str, lock: bool) -> None:
    """Guarantee 16: it takes no lock, so it may run while this thread, or another, holds it."""
    with Notifier(server) as n:
        stream = n.listen(channel)
        held = threading.Event()
        go = threading.Event()

        def hold() -> None:
            with n._dispatcher.lock:
                held.set()
                go.wait(5)

        if lock:
            with n._dispatcher.lock:
                del stream
                gc.collect()
        else:
            thread = threading.Thread(target=hold)
            thread.start()
            assert held.wait(5)
            began = time.monotonic()
            del stream
            gc.collect()
            assert time.monotonic() - began < 3  # the lock is held for five seconds; a collection takes a while
            go.set()
            thread.join()
        until(lambda: not n.subscribers())
        gone(n, channel)


def test_collected_anywhere(server: str, sender: Conn, channel: str) -> None:
    """The collector comes every few allocations in all threads, while streams come and go."""
    with Notifier(server) as n:
        n.subscribe("other", channel, lambda *a: None)
        end = time.monotonic() + 2
        problems: list[BaseException] = []

        def churn(number: int) -> None:
            try:
                while time.monotonic() < end:
                    stream = n.listen(channel, f"{channel}_{number}")
                    stream.me = stream  # type: ignore[attr-defined]
                    stream.get(5)
            except BaseException as error:
                problems.append(error)

        before = gc.get_threshold()
        gc.set_threshold(7)
        try:
            threads = [threading.Thread(target=churn, args=(i,), daemon=True) for i in range(3)]
            for thread in threads:
                thread.start()
            while time.monotonic() < end:
                series(sender, channel, 1, 20)
            for thread in threads:
                thread.join(10)
                assert not thread.is_alive()
        finally:
            gc.set_threshold(*before)
        gc.collect()
        assert problems == []
        until(lambda: list(n.subscribers()) == ["other"], 5)
        until(lambda: n.active_channels() == [channel], 5)


def test_ctrl_c_in_listen_leaves_no_stream(server: str, channel: str) -> None:
    """Guarantee 11: its owner never had it, so it goes, also where other changes are made meanwhile."""
    with Notifier(server, heartbeat=20) as n:
        pid = n.status()["pid"]
        for other in (False, True):
            os.kill(pid, signal.SIGSTOP)
            try:
                timer = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
                timer.start()
                try:
                    n.listen(channel)
                except KeyboardInterrupt:
                    pass
                else:
                    raise AssertionError("not interrupted")
                timer.join()
                gc.collect()
                if other:
                    n.add_channels(f"{channel}_other")
            finally:
                os.kill(pid, signal.SIGCONT)
            n.subscribe("probe", f"{channel}_probe", print)
            until(lambda: list(n.subscribers()) == ["probe"], 3)
            until(lambda: n.active_channels() == [f"{channel}_probe"], 3)
            n.unsubscribe("probe", f"{channel}_probe")
