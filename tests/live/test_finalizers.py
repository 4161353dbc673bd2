"""Guarantee 11: any method may be called by a finalizer that the garbage collector runs anywhere, in any thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG = os.environ.get("PGNOTIFIER_LONG") == "1"
SCRIPT = Path(__file__).with_name("finalizers.py")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("method", ["unsubscribe", "subscribe", "new channel", "mute", "status", "stop", "all"])
def test_no_deadlock_and_no_lost_change(server: str, method: str, threads: int) -> None:
    """The collector comes every few allocations, while threads change subscriptions and traffic flows."""
    methods = ["unsubscribe", "subscribe", "new channel", "mute", "status"] if method == "all" else [method]
    seconds = "60" if LONG else "1.5"
    command = [sys.executable, str(SCRIPT), server, "1", seconds, str(threads), *methods]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise AssertionError(f"{done.stdout[-2000:]}\n{done.stderr[-8000:]}")
