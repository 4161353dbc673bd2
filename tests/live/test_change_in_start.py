"""Guarantee 5: a change that another thread makes while start() is at work is neither undone nor forgotten."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgnotifier
from conftest import until
from pgnotifier import Notifier

LIBRARY = str(Path(pgnotifier.__file__).parent)


class At:
    """`run(f, g)` runs `f` in a thread, and `g` in another when `f` begins its `place`-th function of the library.

    `f` goes on when `g` has ended, or after 20 ms, because `g` may wait for it. `reached`: there was such a place.
    """

    def __init__(self, place: int) -> None:
        self.left = place
        self.reached = False

    def run(self, f: Any, g: Any) -> None:
        second = threading.Thread(target=g)

        def trace(frame: Any, event: str, arg: Any) -> None:
            if frame.f_code.co_filename.startswith(LIBRARY):
                self.left -= 1
                if self.left == 0:
                    self.reached = True
                    sys.settrace(None)
                    second.start()
                    second.join(0.02)

        def first() -> None:
            sys.settrace(trace)
            f()
            sys.settrace(None)

        thread = threading.Thread(target=first)
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), "it hangs"
        if self.reached:
            second.join(20)
            assert not second.is_alive(), "the other hangs"
        else:
            g()


@pytest.mark.parametrize(
    "how",
    [
        "mute_subscriber",
        "unmute_subscriber",
        "subscribe",
        "unsubscribe",
        "mute_channels",
    ],
)
def test_at_each_place(server: str, sender: psycopg.Connection[Any], channel: str, how: str) -> None:
    """The change holds for the server and for who is called, and on_listen(None) comes."""
    wrong: list[str] = []
    heard = {"s": 0, "w": 0}
    told: list[Any] = []
    other = f"{channel}_w"

    def fn(id: Any, name: str, payload: Any, pid: int) -> None:
        heard[id] = payload

    with Notifier(server) as n:
        n.subscribe("w", other, fn)
        if how != "mute_channels":
            n.subscribe("w", channel, fn)
        for place in range(1, 1000):
            n.stop()
            n.subscribe("s", channel, fn)
            n.unmute_channels(channel)
            (n.mute_subscriber if how == "unmute_subscriber" else n.unmute_subscriber)("s")

            def change(place: int = place) -> None:
                if how == "subscribe":
                    n.subscribe(place, channel, lambda *a: None, on_listen=lambda *a: told.append(a[0]))
                elif how == "mute_channels":
                    n.mute_channels(channel)
                elif how == "unsubscribe":
                    n.unsubscribe("s", channel)
                else:
                    getattr(n, how)("s")

            at = At(place)
            at.run(n.start, change)
            active = [other] if how == "mute_channels" else [channel, other]
            if n.active_channels() != active:
                wrong.append(f"place {place}: {n.active_channels()} are active instead of {active}")
            sender.execute("select pg_notify(%s, %s)", (channel, str(place)))
            sender.execute("select pg_notify(%s, %s)", (other, str(place)))
            until(lambda: heard["w"] == place and not n.status()["pending"])  # noqa: B023
            due = how in ("unmute_subscriber", "subscribe")
            with contextlib.suppress(AssertionError):
                until(lambda: (heard["s"] == place) == due, 1)  # noqa: B023
            if (heard["s"] == place) != due:
                wrong.append(f"place {place}: after {how} it has heard {heard['s']}")
            if how == "subscribe":
                with contextlib.suppress(AssertionError):
                    until(lambda: place in told, 1)  # noqa: B023
                wrong += [] if place in told else [f"place {place}: on_listen was not called"]
                n.unsubscribe(place, channel)
            if not at.reached or wrong:
                break
    assert not wrong, wrong
    assert place > 20
