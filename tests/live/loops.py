"""What tests on an event loop share: the loop, waiting, the seed, and the ways in which a task is cancelled."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Coroutine
from typing import Any

import anyio
import pytest

IDLE = ["pgnotifier-listener", "pgnotifier-worker-1"]  # the threads of a notifier that has nothing to do


def seeded() -> random.Random:
    """PGNOTIFIER_TEST_SEED repeats a run that failed."""
    seed = int(os.environ.get("PGNOTIFIER_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"PGNOTIFIER_TEST_SEED={seed}")
    return random.Random(seed)


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "uvloop":
        return pytest.importorskip("uvloop").new_event_loop()
    loop = asyncio.new_event_loop()
    loop.set_debug(kind == "debug")
    return loop


def run(main: Coroutine[Any, Any, None], kind: str = "debug") -> None:
    """Run on a new event loop, for 30 s at most, and see that no task is left on it."""
    loop = new_loop(kind)
    try:
        loop.run_until_complete(asyncio.wait_for(main, 30))
        assert asyncio.all_tasks(loop) == set()
    finally:
        loop.close()


async def until_(condition: Any, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        await asyncio.sleep(0.002)


def threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("pgnotifier-"))


async def given_up_by_anyio(call: Coroutine[Any, Any, Any], after: float) -> None:
    """As Starlette does it: each further await in the clean-up is cancelled again."""
    with anyio.move_on_after(after):
        await call


async def cancelled_twice(call: Coroutine[Any, Any, Any], after: float) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(after)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
