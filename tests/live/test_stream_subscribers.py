"""Guarantee 16: a stream is a subscriber: its id, its channels, and a thousand of them."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from typing import Any

import pytest

from conftest import until
from pgnotifier import Listening, Notifier, StreamClosed
from streamed import Conn, Reader, gone, rest, send, take, words


def test_it_is_a_subscriber(server: str, channel: str) -> None:
    with Notifier(server) as n:
        stream, named = n.listen(channel), n.listen(channel, f"{channel}_two", id=("mine", 1))
        assert stream.id is stream
        assert named.id == ("mine", 1)
        assert stream in n.subscribers()
        assert n.subscribers().keys() == {stream, ("mine", 1)}
        assert n.subscribers()[stream]["channels"].keys() == {channel}
        assert n.subscribers()[("mine", 1)]["channels"].keys() == {channel, f"{channel}_two"}
        assert n.muted_subscribers() == {channel: [], f"{channel}_two": []}
        (own,) = (id for id in n.subscribers() if id == stream)
        assert {stream: 1}[own] == {own: 1}[stream] == 1
        assert channel in repr(stream)
        stream.close()
        assert stream not in n.subscribers()
        assert "closed" in repr(stream)


@pytest.mark.parametrize("first", ["stream", "callback", "another notifier's"])
def test_an_id_that_is_taken(server: str, sender: Conn, channel: str, first: str) -> None:
    """Guarantee 16: `ValueError`, and nothing has changed. Of another notifier it is free."""
    two = f"{channel}_two"
    with Notifier(server) as n, Notifier(server) as other:
        if first == "stream":
            stream = n.listen(channel, id=1)
            for name in (channel, two):
                with pytest.raises(ValueError, match="is a stream's"):
                    n.subscribe(1, name, print)
        elif first == "callback":
            n.subscribe(1, channel, print)
        else:
            stream = other.listen(channel, id=1)
            n.listen(channel, id=1).close()
        before = n.channels(), n.subscribers(), n.active_channels()
        if first != "another notifier's":
            with pytest.raises(ValueError, match="registered already"):
                n.listen(channel, two, id=1)
            assert (n.channels(), n.subscribers(), n.active_channels()) == before
        if first != "callback":
            send(sender, channel, 1)
            assert words(take(stream, 2)) == [{}, 1]


def test_another_stream_of_an_id_that_is_free_again(server: str, sender: Conn, channel: str) -> None:
    """What has lost its channels ends. It takes nothing from who has its id next, nor closes that."""
    heard: list[Any] = []
    with Notifier(server) as n:
        old = n.listen(channel, id=1)
        take(old, 1)
        n.unsubscribe(1, channel)
        new = n.listen(channel, id=1)
        send(sender, channel, 1)
        until(lambda: n.status()["received"] == 1)
        with pytest.raises(StreamClosed, match="closed"):
            old.get()
        old.close()
        assert words(rest(new)) == [{}, 1]
        reader = Reader(new)
        time.sleep(0.7)  # until it waits in long slices
        n.remove_channels(channel)
        assert reader.ended(0.5)
        n.subscribe(1, channel, lambda *a: heard.append(a[2]), on_listen=lambda *a: heard.append(a[2]))
        again = Reader(new)
        for i in range(200):
            send(sender, channel, i)
        until(lambda: heard == [None, *range(200)])
        new.close()
        assert again.ended()
        assert reader.events == again.events == []
        assert list(n.subscribers()) == [1]


@pytest.mark.parametrize("kept", ["", "add_channels", "add_channels before", "subscribe", "another stream"])
def test_a_channel_leaves_with_the_stream(server: str, channel: str, kept: str) -> None:
    """Guarantee 16: when nobody else has subscribed to it or added it."""
    with Notifier(server) as n:
        if kept == "add_channels before":
            n.add_channels(channel)
        stream = n.listen(channel)
        if kept == "add_channels":
            n.add_channels(channel)
        elif kept == "subscribe":
            n.subscribe("other", channel, print)
        elif kept == "another stream":
            other = n.listen(channel)
        stream.close()
        assert (channel in n.channels()) is (kept != "")
        if kept == "subscribe":
            n.unsubscribe("other", channel)
            assert channel in n.channels()
        elif kept == "another stream":
            assert n.active_channels() == [channel]
            other.close()
            assert channel not in n.channels()
        until(lambda: n.active_channels() == [])


def test_one_of_its_channels_is_unsubscribed(server: str, sender: Conn, channel: str) -> None:
    two = f"{channel}_two"
    with Notifier(server) as n, n.listen(channel, two) as stream:
        take(stream, 1)
        send(sender, two, 1)
        until(lambda: n.status()["received"] == 1)
        n.unsubscribe(stream, two)
        assert n.channels().keys() == {channel}
        assert n.active_channels() == [channel]
        send(sender, two, 2)
        send(sender, channel, 3)
        assert words(take(stream, 1)) == [3]
        assert n.subscribers()[stream]["channels"].keys() == {channel}
        n.unsubscribe(stream, channel)
        assert stream not in n.subscribers()
        assert stream.closed
    gone(n, channel, two)


def test_a_thousand_streams(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 16: one session, all hear everything, and an idle one costs little."""
    with Notifier(server) as n:
        n.listen(channel).close()  # what is made once
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        streams = [n.listen(channel) for _ in range(1000)]
        for stream in streams:
            assert isinstance(stream.get(0), Listening)
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / 1000
        tracemalloc.stop()
        began = time.monotonic()
        for i in range(1000):
            send(sender, channel, i)
        until(lambda: n.status()["pending"] == 1_000_000, 60)
        posted = time.monotonic() - began
        for stream in streams:
            assert [stream.get(0).payload for _ in range(1000)] == list(range(1000))  # type: ignore[union-attr]
        seconds = time.monotonic() - began
        rate = 1_000_000 / (seconds - posted)
        print(f"{each:.0f} bytes each, posted in {posted:.2f} s, read in {seconds - posted:.2f} s, {rate:.0f}/s")
        assert each < 5000
        assert seconds < 60
        assert n.status()["dropped"] == 0
        assert n.status()["restarts"] <= 3
        count = "select count(*) from pg_stat_activity where application_name = 'pgnotifier'"
        assert sender.execute(count).fetchone() == (1,)
        assert sys.getrefcount(n) < 3000
