"""Guarantee 16: readers that are slow, many, interrupted, or cannot decode; and what `status()` says of them."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest

from conftest import until
from pgnotifier import Listening, Notification, Notifier
from streamed import Conn, Reader, payloads, rest, send, series, take, words


def test_overflow_stands_where_the_hole_is(server: str, sender: Conn, channel: str) -> None:
    """Guarantees 9 and 16: at that place, of that size, and nobody else loses anything."""
    heard: list[int] = []
    with Notifier(server, max_pending=80) as n:
        events = n.listen(n.SYSCHAN)
        slow, quick = n.listen(channel, id="slow"), Reader(n.listen(channel))
        n.subscribe("callback", channel, lambda *a: heard.append(a[2]))
        assert words(take(slow, 1)) == [{}]
        series(sender, channel, 1, 40)
        until(lambda: n.status()["received"] == 40)
        first = words(take(slow, 3))
        assert first == [1, 2, 3]
        for i in range(41, 501):
            send(sender, channel, i)
        until(lambda: n.status()["received"] == 500 and heard[-1:] == [500])
        after = rest(slow)
        told = [event for event in after if isinstance(event, Listening)]
        (at,) = (place for place, event in enumerate(after) if event is told[0])
        low = after[at - 1].payload if at else 3
        high = after[at + 1].payload
        assert len(told) == 1
        assert [(gap.channel, gap.reason, gap.dropped) for gap in told[0].gaps] == [
            (channel, "overflow", high - low - 1)
        ]
        assert first + payloads(after) == [*range(1, low + 1), *range(high, 501)]
        assert len(payloads(after)) <= 80
        assert n.status()["dropped"] == high - low - 1
        until(lambda: quick.payloads == list(range(1, 501)))
        assert heard == list(range(1, 501))
        announced = [event.payload for event in rest(events) if isinstance(event, Notification)]
        assert {(e["event"], e["id"], e["channel"]) for e in announced} == {("overflow", "slow", channel)}
        assert sum(e["dropped"] for e in announced) == n.status()["dropped"]


def test_what_cannot_be_decoded_is_skipped(server: str, sender: Conn, channel: str) -> None:
    """Guarantees 7 and 16: logged, counted, reported; the next one comes. Alone or shared with another stream."""
    with Notifier(server, decode=int) as n:
        n.subscribe("events", n.SYSCHAN, lambda *a: told.append(a[2]))
        told: list[Any] = []
        stream = n.listen(channel)
        send(sender, channel, 1, "two", 3, "four")
        until(lambda: n.status()["received"] == 4)
        assert words(rest(stream)) == [{}, 1, 3]
        until(lambda: len(told) == 2)
        assert [(e["event"], e["channel"], e["payload"]) for e in told] == [
            ("decode_failed", channel, "two"),
            ("decode_failed", channel, "four"),
        ]
        assert "invalid literal" in told[0]["error"]
        assert (n.status()["failed"], n.status()["pending"]) == (2, 0)
        other = n.listen(channel)
        send(sender, channel, "five", 6)
        assert [words(take(s, 2))[1:] for s in (other,)] == [[6]]
        assert stream.get(10).payload == 6
        until(lambda: n.status()["delivered"] == 4 + len(told))


def test_a_reader_that_decodes_slowly_harms_only_itself(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 16: others that share the payload do not wait for it."""
    go, entered = threading.Event(), threading.Event()

    def decode(text: str) -> str:
        if threading.current_thread() is reader.thread:
            entered.set()
            go.wait(20)
        return text

    with Notifier(server, decode=decode) as n:
        heard: list[str] = []
        reader, other = Reader(n.listen(channel)), n.listen(channel)
        until(lambda: reader.events)
        send(sender, channel, "a")
        assert entered.wait(10)
        began = time.monotonic()
        n.subscribe("callback", channel, lambda *a: heard.append(a[2]))
        try:
            assert words(take(other, 2)) == [{}, "a"]
            send(sender, channel, "b")
            until(lambda: heard == ["b"], 3)
            assert time.monotonic() - began < 3
        finally:
            go.set()
        until(lambda: reader.payloads == ["a", "b"])


@pytest.mark.parametrize("count", [2, 8])
def test_several_readers(server: str, sender: Conn, channel: str, count: int) -> None:
    """Guarantee 16: each event goes to one of them, and each of them has its own in order."""
    with Notifier(server) as n:
        stream = n.listen(channel)
        readers = [Reader(stream) for _ in range(count)]
        for i in range(0, 20_000, 1000):
            series(sender, channel, i, i + 999)
        until(lambda: sum(len(r.events) for r in readers) == 20_001)
        assert n.status()["delivered"] == 20_000
        stream.close()
        assert all(r.ended() for r in readers)
        assert sorted(p for r in readers for p in r.payloads) == list(range(20_000))
        assert all(r.payloads == sorted(r.payloads) for r in readers)


def test_ctrl_c_in_a_reader(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 11: it comes through at once, while the reader waits and while it decodes; the stream goes on."""
    decoding = threading.Event()

    def decode(text: str) -> str:
        if text == "interrupt":
            decoding.set()
            for _ in range(500):
                time.sleep(0.01)
        return text

    with Notifier(server, decode=decode) as n:
        stream = n.listen(channel)
        take(stream, 1)
        for text in ("wait", "interrupt"):
            began = time.monotonic()
            timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
            timer.start()
            if text != "wait":
                send(sender, channel, text)
            with pytest.raises(KeyboardInterrupt):
                stream.get(5)
            assert time.monotonic() - began < 2
            timer.join()
            send(sender, channel, "next")
            assert stream.get(5).payload == "next"
        assert n.status()["failed"] == 0
        assert n.is_running()


def test_status(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 11: what waits and what was given, after each event."""
    with Notifier(server, max_pending=50) as n:
        stream = n.listen(channel)
        series(sender, channel, 1, 40)
        until(lambda: n.status()["received"] == 40)
        assert (n.status()["pending"], n.status()["delivered"]) == (40, 0)
        take(stream, 1)
        for i in range(1, 41):
            take(stream, 1)
            assert n.status()["pending"] == 40 - i
        assert n.status()["delivered"] == 40
        series(sender, channel, 1, 40)
        until(lambda: n.status()["received"] == 80)
        take(stream, 3)
        n.mute_subscriber(stream)
        assert (n.status()["pending"], n.status()["dropped"]) == (0, 0)
        n.unmute_subscriber(stream)
        assert words(rest(stream)) == [{channel: "muted"}]
        assert n.status()["delivered"] == 43
        series(sender, channel, 1, 40)
        assert take(stream, 2)[1].payload == 2
        stream.close()
        assert (n.status()["pending"], n.status()["delivered"]) == (0, 45)


@pytest.mark.parametrize("how", ["signal", "lock"])
def test_reading_where_it_cannot_wait(server: str, sender: Conn, channel: str, how: str) -> None:
    """A handler that interrupts a method while it holds the state lock gets nothing, and does not hang."""
    with Notifier(server) as n:
        stream = n.listen(channel)
        with n._dispatcher.lock:
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                stream.get(0 if how == "signal" else None)
            assert time.monotonic() - began < 0.5
        assert stream.get(0) == Listening((channel,), ())
