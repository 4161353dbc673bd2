"""Guarantee 11: stop(drain=True) on the event loop that is to be drained does not block it for the whole time-out."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg
import pytest

from oracle import send
from pgnotifier import Notifier


@pytest.mark.parametrize(
    "state",
    [
        "some wait",
        "one runs",
    ],
)
def test_it_returns_at_once(server: str, sender: psycopg.Connection[Any], channel: str, state: str) -> None:
    """Coroutine callbacks of that loop wait for their turn, or one is in the middle."""
    calls: list[Any] = []

    async def main() -> float:
        entered = asyncio.Event()

        async def fn(id: Any, name: str, payload: Any, pid: int) -> None:
            calls.append(payload)
            entered.set()
            await asyncio.sleep(0.01)

        n = Notifier(server)
        try:
            n.subscribe(1, channel, fn)
            if state == "one runs":
                send(sender, channel, 1)
                await asyncio.wait_for(entered.wait(), 5)
            send(sender, channel, 2, 100)
            deadline = time.monotonic() + 5
            while n.status()["received"] < 99 and time.monotonic() < deadline:
                time.sleep(0.001)  # the loop stands still: nothing is delivered meanwhile
            time.sleep(0.05)
            since = time.monotonic()
            n.stop(5, drain=True)
            return time.monotonic() - since
        finally:
            n.stop(0)
            await asyncio.sleep(0.05)

    assert asyncio.run(main()) < 1.0
