"""Guarantee 11: after `unsubscribe` or `remove_channels` the library holds no reference to the callback."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from conftest import until
from oracle import Witness, send
from pgnotifier import Notifier

Conn = psycopg.Connection[Any]

COUNT = 300


class Subscriber:
    """Its methods are the callbacks; it is alive as long as anything holds one of them. Usable as an id, too."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.calls = 0
        self._gate = gate

    def fn(self, *args: Any) -> None:
        self.calls += 1
        if self._gate is not None:
            self._gate.wait(10)

    def told(self, *args: Any) -> None:
        pass


def alive(refs: list[weakref.ref[Any]]) -> int:
    gc.collect()
    return sum(ref() is not None for ref in refs)


def released(refs: list[weakref.ref[Any]]) -> None:
    """A worker may be at the end of a call; then nothing holds any of them."""
    try:
        until(lambda: not alive(refs), 3)
    except AssertionError:
        raise AssertionError(f"{alive(refs)} of {len(refs)} are alive") from None


def unsubscribe(n: Notifier, channel: str, ids: list[Any]) -> None:
    for id in ids:
        n.unsubscribe(id, channel)


def remove(n: Notifier, channel: str, ids: list[Any]) -> None:
    n.remove_channels(channel)


HOW = [unsubscribe, remove]


@pytest.mark.parametrize("traffic", ["none", "before", "before and after"])
@pytest.mark.parametrize("another", [True, False])
def test_unsubscribed(server: str, sender: Conn, channel: str, another: bool, traffic: str) -> None:
    """All 300, while the channel goes on with another subscriber, or without."""
    with Notifier(server) as n:
        witness = Witness(n, sender)
        if another:
            n.subscribe("another", channel, lambda *a: None)
        subscribers = [Subscriber() for _ in range(COUNT)]
        for i, one in enumerate(subscribers):
            n.subscribe(i, channel, one.fn, autorun=False, on_listen=one.told)
        n.start()
        if traffic != "none":
            send(sender, channel, 1, 3)
            witness.look()
            until(lambda: not n.status()["pending"])
            assert all(one.calls == 3 for one in subscribers)
        refs = [weakref.ref(one) for one in subscribers]
        del subscribers, one
        unsubscribe(n, channel, list(range(COUNT)))
        if traffic == "before and after":
            send(sender, channel, 1, 3)
            witness.look()
        released(refs)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("on", ["one", "two"])
def test_one_of_an_ids_channels(
    server: str, sender: Conn, channel: str, how: Callable[[Notifier, str, list[Any]], None], on: str
) -> None:
    """The id stays subscribed to another channel, with or without traffic there since."""
    with Notifier(server) as n:
        witness = Witness(n, sender)
        subscribers = [Subscriber() for _ in range(COUNT)]
        for i, one in enumerate(subscribers):
            n.subscribe(i, channel, one.fn, autorun=False, on_listen=one.told)
            n.subscribe(i, f"{channel}_two", lambda *a: None, autorun=False)
        n.start()
        send(sender, channel, 1, 3)
        send(sender, f"{channel}_two", 1, 3)
        witness.look()
        until(lambda: not n.status()["pending"])
        refs = [weakref.ref(one) for one in subscribers]
        del subscribers, one
        how(n, channel, list(range(COUNT)))
        if on == "two":
            send(sender, f"{channel}_two", 4, 6)
            witness.look()
        released(refs)


@pytest.mark.parametrize("how", HOW)
def test_with_something_in_the_mailbox(
    server: str, sender: Conn, channel: str, how: Callable[[Notifier, str, list[Any]], None]
) -> None:
    """The call that runs holds it until it ends; what waits does not."""
    opened = threading.Event()
    with Notifier(server, workers=3) as n:
        witness = Witness(n, sender)
        one = Subscriber(opened)
        n.subscribe(1, channel, one.fn, on_listen=one.told)
        send(sender, channel, 1, 50)
        witness.look()
        until(lambda: n.status()["pending"] == 49)
        refs = [weakref.ref(one)]
        del one
        how(n, channel, [1])
        opened.set()
        released(refs)


@pytest.mark.parametrize("state", ["fresh", "used"])
@pytest.mark.parametrize("when", ["stopped", "started again"])
@pytest.mark.parametrize("how", HOW)
def test_while_stopped(
    server: str,
    sender: Conn,
    channel: str,
    how: Callable[[Notifier, str, list[Any]], None],
    when: str,
    state: str,
) -> None:
    """No mailbox stays behind, so neither callback nor id is held."""
    with Notifier(server) as n:
        witness = Witness(n, sender)
        ids = [Subscriber() for _ in range(COUNT)]
        for one in ids:
            n.subscribe(one, channel, one.fn, autorun=False, on_listen=one.told)
        if state == "used":
            n.start()
            send(sender, channel, 1, 3)
            witness.look()
            until(lambda: not n.status()["pending"])
        n.stop()
        refs = [weakref.ref(one) for one in ids]
        how(n, channel, ids)
        del ids, one
        if when == "started again":
            n.start()
            witness.look()
        released(refs)


def test_replaced(server: str, sender: Conn, channel: str) -> None:
    """A callback that another has taken the place of, for the same id and channel."""
    with Notifier(server) as n:
        witness = Witness(n, sender)
        subscribers = [Subscriber() for _ in range(COUNT)]
        for i, one in enumerate(subscribers):
            n.subscribe(i, channel, one.fn, autorun=False, on_listen=one.told)
        n.start()
        send(sender, channel, 1)
        witness.look()
        until(lambda: not n.status()["pending"])
        refs = [weakref.ref(one) for one in subscribers]
        del subscribers, one
        for i in range(COUNT):
            n.subscribe(i, channel, lambda *a: None)
        released(refs)


def test_payloads_are_not_kept(server: str, sender: Conn, channel: str) -> None:
    """What a callback was called with goes when the call has ended."""

    class Payload:
        def __init__(self, text: str) -> None:
            refs.append(weakref.ref(self))

    refs: list[weakref.ref[Any]] = []
    with Notifier(server, decode=Payload) as n:
        n.subscribe(1, channel, lambda *a: None)
        send(sender, channel, 1, 100)
        until(lambda: len(refs) == 100 and not n.status()["pending"])
        released(refs[:-1])
