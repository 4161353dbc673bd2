"""Guarantee 16 on a server in memory, and what the controls do to streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from conftest import until
from pgnotifier import Listening, Notification, StreamClosed
from pgnotifier.testing import MemoryServer


@pytest.fixture
def memory() -> Iterator[MemoryServer]:
    with MemoryServer() as memory:
        yield memory


@pytest.fixture
def n(memory: MemoryServer) -> Any:
    return memory.Notifier()


def test_settle_does_not_wait_for_readers(memory: MemoryServer, n: Any) -> None:
    """What was sent is in the stream when it returns; nobody has to read it."""
    stream = n.listen("a", "b")
    for i in range(500):
        memory.notify("a", i)
        began = time.monotonic()
        n.settle()
        assert time.monotonic() - began < 1
        assert n.status()["pending"] == i + 1
    assert stream.get(0) == Listening(("a", "b"), ())
    for i in range(500):
        assert stream.get(0).payload == i
        if i == 250:
            n.settle()
    with pytest.raises(TimeoutError):
        stream.get(0)


def test_settle_waits_for_callbacks_beside_a_stream(memory: MemoryServer, n: Any) -> None:
    stream, heard = n.listen("a"), list[int]()

    def slow(id: Any, channel: str, payload: int, pid: int) -> None:
        time.sleep(0.05)
        heard.append(payload)

    n.subscribe("slow", "a", slow)
    for i in range(3):
        n.notify("a", i)
    n.settle()
    assert heard == [0, 1, 2]
    assert [stream.get(0) for _ in range(4)][3].payload == 2


def test_settle_while_a_thread_reads_and_answers(memory: MemoryServer, n: Any) -> None:
    """A chain through a reader: each call of settle() returns, and the last has seen all that was sent before."""
    stream, got = n.listen("a"), list[int]()

    def read() -> None:
        for event in stream:
            if isinstance(event, Notification):
                got.append(event.payload)
                if event.payload < 100:
                    n.notify("a", event.payload + 1)

    reader = threading.Thread(target=read)
    reader.start()
    n.notify("a", 1)
    until(lambda: n.settle() or got == list(range(1, 101)))
    n.stop()
    reader.join(5)
    assert not reader.is_alive()


def test_raise_gap(memory: MemoryServer, n: Any) -> None:
    """In its place, one Listening for all channels; a stream counts as one who hears."""
    stream = n.listen("a", "b")
    n.notify("a", 1)
    n.raise_gap(["a", "b"], "overflow", dropped=3)
    n.raise_gap("b", error="x")
    n.notify("b", 2)
    n.settle()
    first, one, gaps, two = (stream.get(0) for _ in range(4))
    assert first == Listening(("a", "b"), ())
    assert (one.payload, two.payload) == (1, 2)
    assert gaps.channels == ("a", "b")
    assert [(g.channel, g.reason, g.dropped, g.error) for g in gaps.gaps] == [
        ("a", "overflow", 3, None),
        ("b", "connection", None, "x"),  # two that overlap are one
    ]
    n.mute_subscriber(stream)
    with pytest.raises(ValueError, match="no unmuted subscriber"):
        n.raise_gap("a")


def test_losses(memory: MemoryServer, n: Any) -> None:
    stream = n.listen("a", "b")
    with n.connection_lost():
        n.notify("a", "missed")
    n.notify("a", 1)
    memory.stop()
    memory.start()
    n.notify("b", 2)
    n.settle()
    events = [stream.get(0) for _ in range(4)]
    with pytest.raises(TimeoutError):
        stream.get(0)
    kinds = [[g.reason for g in e.gaps] if isinstance(e, Listening) else e.payload for e in events]
    assert kinds == [["connection"] * 2, 1, ["connection"] * 2, 2]
    n.stop()
    with pytest.raises(StreamClosed):
        stream.get()


def test_closed_streams_leave_nothing(memory: MemoryServer, n: Any) -> None:
    for _ in range(100):
        with n.listen("a", "b") as stream:
            assert stream.get(1) == Listening(("a", "b"), ())
    n.settle()
    until(lambda: list(memory.listening().values()) == [["PGNOTIFIER"]])
    assert n.channels() == n.subscribers() == {}
