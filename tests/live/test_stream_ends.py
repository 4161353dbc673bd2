"""Guarantee 16: how a stream is closed: by `close()`, by `stop()`, in a signal handler, in a forked child."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from conftest import until
from pgnotifier import Notifier, Stream, StreamClosed
from streamed import Conn, Reader, gone, rest, send, series, take, words


def test_nothing_comes_after_close(server: str, sender: Conn, channel: str) -> None:
    """Also of what waited, and of what a reader had taken in hand."""
    with Notifier(server) as n:
        for _ in range(50):
            stream = n.listen(channel)
            series(sender, channel, 1, 100)
            take(stream, 5)
            stream.close()
            stream.close()
            with pytest.raises(StreamClosed):
                stream.get(0)
            assert n.status()["pending"] == 0
        gone(n, channel)


def test_close_in_a_callback_and_in_its_own_loop(server: str, sender: Conn, channel: str) -> None:
    with Notifier(server) as n:
        stream = n.listen(channel)
        reader = Reader(stream)
        n.subscribe("closes", f"{channel}_c", lambda *a: stream.close())
        send(sender, f"{channel}_c", 1)
        assert reader.ended()
        with n.listen(channel) as own:
            send(sender, channel, 1, 2, 3)
            got = []
            for event in own:
                got.append(event)
                if len(got) == 2:
                    own.close()
        assert words(got) == [{}, 1]
        n.remove_channels(f"{channel}_c")
        gone(n, channel)


@pytest.mark.parametrize("busy", [False, True])
def test_close_with_a_frozen_server(server: str, sender: Conn, channel: str, busy: bool) -> None:
    """Guarantee 16: it never waits; `busy`: nor while another change does."""
    with Notifier(server, heartbeat=1.5) as n:
        streams = [n.listen(f"{channel}_{i}") for i in range(10)]
        (pid,) = {n.status()["pid"]}
        os.kill(pid, signal.SIGSTOP)
        try:
            if busy:
                change = threading.Thread(target=n.subscribe, args=(1, channel, print))
                change.start()
                time.sleep(0.1)
            seconds = []
            for stream in streams:
                began = time.perf_counter()
                stream.close()
                seconds.append(time.perf_counter() - began)
                with pytest.raises(StreamClosed):
                    stream.get(0)
        finally:
            os.kill(pid, signal.SIGCONT)
        if busy:
            change.join(10)
            n.remove_channels(channel)
        print(f"longest close: {max(seconds) * 1000:.2f} ms")
        assert max(seconds) < 0.05
        gone(n, *(stream.channels[0] for stream in streams))


def test_stop_with_drain(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 11: all that has arrived is given first; what nobody reads is waited for until the time is over."""
    with Notifier(server) as n:
        stream = n.listen(channel)
        series(sender, channel, 1, 5000)
        until(lambda: n.status()["received"] == 5000)
        began = time.monotonic()
        reader = Reader(stream)
        n.stop(drain=True)
        assert time.monotonic() - began < 3
        assert reader.ended()
        assert reader.payloads == list(range(1, 5001))
        n.start()
        take(stream, 1)
        assert n.listen(f"{channel}_two")  # its first event is read by nobody
        began = time.monotonic()
        n.stop(0.5, drain=True)
        assert time.monotonic() - began < 1.5


def test_stop_with_drain_does_not_wait_longer_than_the_reader(server: str, channel: str) -> None:
    """Where the last thing that waits is a Listening."""
    with Notifier(server) as n:
        stream = n.listen(channel)
        threading.Timer(0.7, stream.get, (5,)).start()
        began = time.monotonic()
        n.stop(drain=True)
        assert time.monotonic() - began < 1.0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this platform has no timer that sends a signal")
@pytest.mark.parametrize("method", ["subscribe", "listen", "get", "status", "stop and start", "close"])
def test_close_in_a_signal_handler(server: str, sender: Conn, channel: str, method: str) -> None:
    """Guarantee 11: it interrupts any method, at any place; afterwards the stream is closed, and nothing is left."""
    with Notifier(server) as n:
        open_streams: list[Stream] = []
        own = n.listen(f"{channel}_own")
        count = 0

        def handler(*_: Any) -> None:
            while open_streams:
                open_streams.pop().close()

        def loop() -> None:
            n.subscribe(1, f"{channel}_1", print)
            n.unsubscribe(1, f"{channel}_1")

        def again() -> None:
            n.stop()
            n.start()

        calls: dict[str, Callable[[], object]] = {
            "subscribe": loop,
            "listen": lambda: n.listen(f"{channel}_2").close(),
            "get": lambda: (n.notify(f"{channel}_own"), own.get(5)),
            "status": n.status,
            "stop and start": again,
            "close": lambda: n.listen(channel, f"{channel}_3").close(),
        }
        signal.signal(signal.SIGALRM, handler)
        end = time.monotonic() + 1.5
        try:
            while time.monotonic() < end:
                open_streams.append(n.listen(channel))
                signal.setitimer(signal.ITIMER_REAL, 0.00001 + count % 40 * 0.00005)
                calls[method]()
                until(lambda: not open_streams, 3)
                count += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        print(f"{count} interrupted")
        own.close()
        until(lambda: not n.subscribers(), 3)
        until(lambda: not n.active_channels(), 3)
        n.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 11: in the child the stream is over until `start()`; the parent does not notice."""
    with Notifier(server) as n:
        stream = n.listen(channel)
        reader = Reader(stream)
        half = n.listen(channel)
        series(sender, channel, 0, 19)
        take(half, 5)
        for i in range(20, 40):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    signal.alarm(20)
                    ok = list(stream) == [] and list(half) == [] and stream in n.subscribers()
                    if i % 10 == 0:
                        n.start()
                        n.notify(channel, "child")
                        events = [half.get(10) for _ in range(2)]
                        ok = ok and words(events) == [{channel: "stopped"}, "child"]
                        n.stop()
                    half.close()
                    ok = ok and half not in n.subscribers()
                    code = 0 if ok else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, i
            n.notify(channel, i)
        until(lambda: [p for p in reader.payloads if p != "child"] == list(range(40)))
        assert [p for p in words(rest(half)) if p != "child"] == list(range(4, 40))
