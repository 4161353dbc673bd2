"""Guarantee 16: what a stream gives to its readers, in which order, and when it ends."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest

from conftest import until
from pgnotifier import Listening, Notification, Notifier, StreamClosed
from streamed import Conn, Reader, payloads, rest, send, take, words


def test_the_first_event_tells_of_all_channels(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 16: once, before everything else, also where other subscribers listened to one of them."""
    two = f"{channel}_two"
    with Notifier(server) as n:
        n.subscribe("other", two, lambda *a: None)
        stream = n.listen(channel, two, channel)
        assert n.active_channels() == [channel, two]
        send(sender, two, 1)
        send(sender, channel, 2)
        pid = sender.info.backend_pid
        assert take(stream, 3) == [
            Listening((channel, two), ()),
            Notification(two, 1, pid),
            Notification(channel, 2, pid),
        ]
        assert stream.channels == (channel, two)


def test_order_across_channels(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 4: as PostgreSQL delivers."""
    names = [f"{channel}_{i}" for i in range(3)]
    with Notifier(server) as n, n.listen(*names) as stream:
        for i in range(0, 3000, 3):
            sender.execute(
                "select pg_notify(c, (%s + k - 1)::text) from unnest(%s::text[]) with ordinality x(c, k)", (i, names)
            )
        got = take(stream, 3001)[1:]
        assert payloads(got) == list(range(3000))
        assert [event.channel for event in got] == names * 1000


def test_get(server: str, sender: Conn, channel: str) -> None:
    with Notifier(server) as n:
        stream = n.listen(channel)
        assert stream.get(0) == Listening((channel,), ())
        for seconds in (0, -1, 0.1):
            began = time.monotonic()
            with pytest.raises(TimeoutError, match=f"{channel}.*within {seconds} seconds"):
                stream.get(seconds)
            assert max(seconds, 0) <= time.monotonic() - began < 1
        timer = threading.Timer(0.1, send, (sender, channel, 1))
        timer.start()
        assert stream.get().payload == 1
        timer.join()
        for wrong in (float("nan"), "1"):
            with pytest.raises(ValueError, match="timeout must be a number of seconds"):
                stream.get(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["heard", "muted", "not connected"])
@pytest.mark.parametrize("how", ["close", "stop"])
def test_a_loop_ends(server: str, sender: Conn, channel: str, how: str, state: str) -> None:
    """Guarantee 16: soon, also where nothing could come; then `get` says why."""
    with Notifier(server, retry_delay=(30, 30) if state == "not connected" else (0.1, 1)) as n:
        if state == "not connected":
            sender.execute("select pg_terminate_backend(%s)", (n.status()["pid"],))
            until(lambda: not n.status()["connected"])
        stream = n.listen(channel)
        if state == "muted":
            n.mute_channels(channel)
        reader = Reader(stream)
        time.sleep(0.7)  # until it waits in long slices
        assert reader.events == ([Listening((channel,), ())] if state == "heard" else [])
        began = time.monotonic()
        stream.close() if how == "close" else n.stop()
        assert reader.ended()
        assert time.monotonic() - began < 0.5
        with pytest.raises(StreamClosed, match="closed" if how == "close" else "the notifier is stopped"):
            stream.get()
        assert list(stream) == []


def test_it_goes_on_after_start(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 16: the same stream, and what was missed is its first event, with what waited unread."""
    two = f"{channel}_two"
    with Notifier(server) as n:
        stream = n.listen(channel, two)
        for _ in range(3):
            take(stream, 1)
            send(sender, channel, 1, 2)
            until(lambda: n.status()["pending"] == 2)
            assert stream.get().payload == 1
            n.stop()
            send(sender, channel, 3)
            assert list(stream) == []
            n.start()
            send(sender, two, 4)
            events = take(stream, 2)
            assert words(events) == [{channel: "stopped", two: "stopped"}, 4]
            assert events[0].channels == (channel, two)
            n.stop()
            n.start()


@pytest.mark.parametrize("whom", ["id", "stream", "channels"])
def test_muted(server: str, sender: Conn, channel: str, whom: str) -> None:
    """Guarantees 3 and 16: one Listening with the gaps of all channels, in the place of what was missed."""
    two = f"{channel}_two"
    with Notifier(server) as n:
        stream = n.listen(channel, two, id="mine" if whom == "id" else None)
        n.subscribe("other", two, lambda *a: None)
        send(sender, channel, 1)
        assert words(take(stream, 2)) == [{}, 1]
        send(sender, two, 2)
        until(lambda: n.status()["received"] == 2)
        n.mute_channels() if whom == "channels" else n.mute_subscriber(stream.id)
        assert rest(stream) == []  # guarantee 4: nothing after the call has returned
        send(sender, two, 3)
        until(lambda: whom == "channels" or n.status()["received"] == 3)
        n.unmute_channels() if whom == "channels" else n.unmute_subscriber(stream.id)
        send(sender, channel, 4)
        events = take(stream, 2)
        assert words(events) == [{channel: "muted", two: "muted"}, 4]
        assert all(gap.since <= gap.until for gap in events[0].gaps)


def test_muted_on_one_channel(server: str, sender: Conn, channel: str) -> None:
    two = f"{channel}_two"
    with Notifier(server) as n:
        stream = n.listen(channel, two)
        n.mute_subscriber(stream, two)
        send(sender, two, 1)
        send(sender, channel, 2)
        assert words(take(stream, 2)) == [{}, 2]
        n.unmute_subscriber(stream, two)
        n.mute_subscriber(stream, two)
        n.unmute_subscriber(stream, two)
        send(sender, two, 3)
        events = take(stream, 2)
        assert words(events)[1] == 3
        assert events[0].channels == (two,)


def test_latest(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 9: a newer one takes the place of one that waits, on its channel; that is no gap."""
    two = f"{channel}_two"
    with Notifier(server) as n:
        stream = n.listen(channel, two, deliver="latest")
        for i in range(5):
            send(sender, channel, i)
            send(sender, two, i)
        until(lambda: n.status()["received"] == 10)
        assert [event[:2] for event in rest(stream)] == [((channel, two), ()), (channel, 4), (two, 4)]
        send(sender, two, 5)
        assert stream.get(10)[:2] == (two, 5)
        with pytest.raises(ValueError, match="deliver"):
            n.listen(channel, deliver="newest")  # type: ignore[arg-type]


def test_the_notifiers_own_events(server: str) -> None:
    """Guarantee 6: `stopped` is the last one, and is still given after `stop()`."""
    with Notifier(server) as n:
        stream = n.listen(n.SYSCHAN)
        reader = Reader(stream)
        n.notify(n.SYSCHAN, {"event": "forged"})
        until(lambda: len(reader.events) == 2)
        n.stop()
        assert reader.ended()
        assert reader.events[0] == Listening((n.SYSCHAN,), ())
        assert [(e.payload["event"], e.pid == 0) for e in reader.events[1:]] == [("forged", False), ("stopped", True)]
        n.start()
        events = take(stream, 2)
        assert words(events) == [{n.SYSCHAN: "stopped"}, {"event": "connected"}]
        n.stop()
        assert words(list(stream)) == [{"event": "stopped"}]
        with pytest.raises(StreamClosed):
            stream.get()


def test_refused(server: str, channel: str) -> None:
    """Guarantee 16: nothing has changed after any of these."""
    with Notifier(server) as n, psycopg.connect(server):
        with pytest.raises(ValueError, match="at least one channel"):
            n.listen()
        with pytest.raises(TypeError):
            n.listen([channel])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="hashable"):
            n.listen(channel, id=[])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="63 bytes"):
            n.listen(channel, "x" * 64)
        assert n.channels() == n.subscribers() == {}
