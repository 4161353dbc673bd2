"""Guarantees 4 and 10: a gap stands where the hole is, whatever waited in the mailbox when its cause came."""

from __future__ import annotations

import random
import threading
from typing import Any

import psycopg
import pytest

from conftest import until
from oracle import Heard, Witness, problems, send
from pgnotifier import Gap, Notifier

Conn = psycopg.Connection[Any]

HOW = ["channel", "all channels", "subscriber"]


def mute(n: Notifier, how: str, channel: str, on: bool = True) -> None:
    if how == "subscriber":
        (n.mute_subscriber if on else n.unmute_subscriber)(1, channel)
    elif how == "channel":
        (n.mute_channels if on else n.unmute_channels)(channel)
    else:
        (n.mute_channels if on else n.unmute_channels)()


def shape(heard: Heard) -> list[Any]:
    return [item.reason if isinstance(item, Gap) else item for item in heard.items]


@pytest.mark.parametrize("meanwhile", [0, 3])
@pytest.mark.parametrize("how", HOW)
def test_what_waits_when_muted_lies_under_the_gap(
    server: str, sender: Conn, channel: str, how: str, meanwhile: int
) -> None:
    """Guarantee 4: one call runs, four wait; of these none begins after the mute, and the gap is in their place."""
    gate = threading.Semaphore(0)
    heard = Heard(gate)
    with Notifier(server, workers=2) as n:
        witness = Witness(n, sender)
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        send(sender, channel, 1, 5)
        until(lambda: heard.stuck)
        witness.look()
        mute(n, how, channel)
        if meanwhile:
            send(sender, channel, 6, 5 + meanwhile)
        mute(n, how, channel, on=False)
        send(sender, channel, 10, 12)
        gate.release(100)
        until(lambda: heard.entered == 12)
        assert shape(heard) == [None, 1, "muted", 10, 11, 12], heard.words()


@pytest.mark.parametrize("how", ["channel", "subscriber"])
def test_muted_and_unmuted_by_callbacks_of_one_stream(server: str, sender: Conn, channel: str, how: str) -> None:
    """Guarantee 10: the third call mutes, one on another channel unmutes: `1 2 3 Gap 8`, not `1 2 3 6 7 Gap 8`."""
    heard = Heard()
    other = f"{channel}_other"
    entered, opened = threading.Event(), threading.Event()

    def fn(id: Any, name: str, payload: Any, pid: int) -> None:
        heard.fn(id, name, payload, pid)
        if payload == 1:
            entered.set()
            opened.wait(10)
        if payload == 3:
            mute(n, how, channel)

    with Notifier(server, workers=2) as n:
        witness = Witness(n, sender)
        n.subscribe(1, channel, fn, on_listen=heard.told)
        n.subscribe(1, other, lambda *a: mute(n, how, channel, on=False))
        send(sender, channel, 1, 5)
        send(sender, other, 0)
        send(sender, channel, 6, 7)
        assert entered.wait(10)
        witness.look()
        opened.set()
        until(lambda: shape(heard)[-1:] == ["muted"])
        send(sender, channel, 8)
        until(lambda: heard.entered == 8)
        assert shape(heard) == [None, 1, 2, 3, "muted", 8], heard.words()


def test_muted_many_times_while_one_call_runs(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 10: causes that overlap make one gap; the numbers between them wait in vain."""
    gate = threading.Semaphore(0)
    heard = Heard(gate)
    with Notifier(server, workers=2) as n:
        witness = Witness(n, sender)
        n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        send(sender, channel, 1)
        until(lambda: heard.stuck)
        for number in range(1, 20):
            send(sender, channel, 10 * number, 10 * number + 3)
            witness.look()
            n.mute_channels(channel)
            send(sender, channel, 10 * number + 4, 10 * number + 6)
            n.unmute_channels(channel)
        send(sender, channel, 200)
        gate.release(1000)
        until(lambda: heard.entered == 200)
        assert heard.numbers == [1, 200], heard.words()
        assert len(heard.gaps) == 1, heard.words()


class Life:
    """A random sequence of calls, and what they promise of each subscription of one id."""

    def __init__(self, server: str, sender: Conn, channels: list[str], rng: random.Random) -> None:
        self.n = Notifier(server, workers=2)
        self.sender, self.channels, self.rng = sender, channels, rng
        self.witness = Witness(self.n, sender)
        self.gate = threading.Semaphore(0)
        self.number = 0
        self.done: list[str] = []
        self.running = True
        self.now: dict[str, Heard] = {}
        self.muted = {channel: [False, False] for channel in channels}  # the channel, the subscriber on it
        self.sent: dict[Heard, list[int]] = {}  # since it listened for the first time
        self.all: list[tuple[str, Heard]] = []
        self.over: list[tuple[Heard, int, int, str]] = []  # of its numbers, which were not to begin any more

    def valid(self, channel: str) -> bool:
        return self.running and channel in self.now and not any(self.muted[channel])

    def ended(self, channel: str, what: str, entered: dict[Heard, int]) -> None:
        """What was sent until now and had not begun by now never begins."""
        heard = self.now.get(channel)
        if heard is not None:
            self.over.append((heard, max(entered.get(heard, 0), heard.entered), self.number, what))

    def step(self, what: str, channel: str) -> None:
        self.done.append(f"{what} {channel[-1]}")
        n = self.n
        if self.running:
            self.witness.look()
        entered = {heard: heard.entered for _, heard in self.all}
        if what == "send":
            first = self.number + 1
            self.number += self.rng.randint(1, 4)
            heard = self.now.get(channel)
            if heard is not None and (self.valid(channel) or heard in self.sent):
                self.sent.setdefault(heard, []).extend(range(first, self.number + 1))
            send(self.sender, channel, first, self.number)
        elif what == "permit":
            self.gate.release(self.rng.randint(1, 3))
        elif what == "subscribe" and channel not in self.now:
            heard = self.now[channel] = Heard(self.gate, lambda: self.number)
            self.muted[channel][1] = False
            self.all.append((channel, heard))
            n.subscribe(1, channel, heard.fn, on_listen=heard.told)
        elif what == "unsubscribe" and channel in self.now:
            n.unsubscribe(1, channel)
            self.ended(channel, what, entered)
            del self.now[channel]
        elif what in ("mute_channels", "unmute_channels"):
            self.muted[channel][0] = what == "mute_channels"
            getattr(n, what)(channel)
            if what == "mute_channels":
                self.ended(channel, what, entered)
        elif what in ("mute_subscriber", "unmute_subscriber") and channel in self.now:
            self.muted[channel][1] = what == "mute_subscriber"
            getattr(n, what)(1, channel)
            if what == "mute_subscriber":
                self.ended(channel, what, entered)
        elif what == "stop":
            n.stop(0)
            for name in self.channels:
                self.ended(name, what, entered)
            self.running = False
        elif what == "start":
            n.start()
            self.running = True
        for name in self.channels:
            if self.valid(name):
                self.sent.setdefault(self.now[name], [])

    def finish(self) -> list[str]:
        """All is opened, and each channel that can hears one more number, which ends its last hole."""
        self.gate.release(10_000)
        self.n.start()
        self.running = True
        self.n.unmute_channels(self.channels)
        for channel in self.channels:
            self.muted[channel] = [False, False]
            self.step("subscribe", channel)
            self.n.unmute_subscriber(1, channel)
            self.step("send", channel)
            until(lambda heard=self.now[channel]: heard.entered == self.number)  # type: ignore[misc]
        found = [
            f"{name[-1]}: {problem}: {heard.words()}"
            for name, heard in self.all
            if heard in self.sent and name in self.now and self.now[name] is heard
            for problem in problems(heard, self.sent[heard])
        ]
        for heard, entered, until_number, what in self.over:
            late = [number for number in heard.numbers if entered < number <= until_number]
            if len(late) > 1:  # one may have been decided on
                found.append(f"{late} began after {what}: {heard.words()}")
        for _, heard in self.all:
            if heard.items and (heard.items[0] is not None or heard.items.count(None) != 1):
                found.append(f"on_listen(None) must come once, and first: {heard.words()}")
        return found

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *exc: object) -> None:
        self.gate.release(10_000)
        self.n.stop()


ENDS = ["mute_channels", "mute_subscriber", "stop", "unsubscribe", "permit", "permit"]
BACK = {
    "mute_channels": "unmute_channels",
    "mute_subscriber": "unmute_subscriber",
    "stop": "start",
    "unsubscribe": "subscribe",
}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_random_lives(server: str, sender: Conn, channel: str, count: int) -> None:
    """Guarantee 10: each number sent while subscribed comes in order, or lies under a gap at that place."""
    failed: list[str] = []
    for seed in range(25):
        rng = random.Random(1000 * count + seed)
        names = [f"{channel}_{seed}_{i}" for i in range(count)]
        with Life(server, sender, names, rng) as life:
            life.n.add_channels(names)
            for name in names:
                life.step("subscribe", name)
            undone: list[tuple[str, str]] = []
            for _ in range(40):
                if rng.random() < 0.5:
                    life.step("send", rng.choice(names))
                elif undone and rng.random() < 0.7:
                    life.step(*undone.pop(rng.randrange(len(undone))))
                else:
                    what, name = rng.choice(ENDS), rng.choice(names)
                    life.step(what, name)
                    undone += [(BACK[what], name)] if what in BACK else []
            found = life.finish()
            if found:
                failed.append(f"seed {1000 * count + seed}: {found[0]} after {', '.join(life.done)}")
    assert not failed, f"{len(failed)} of 25: {failed[0]}"
