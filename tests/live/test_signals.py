"""Guarantee 11: a signal handler may call any method, whichever it interrupts.

PGNOTIFIER_LONG=1 interrupts each method three hundred times by each other one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from interrupts import METHODS

if not hasattr(signal, "setitimer"):
    pytest.skip("this platform has no timer that sends a signal", allow_module_level=True)

LONG = os.environ.get("PGNOTIFIER_LONG") == "1"
SCRIPT = Path(__file__).with_name("interrupts.py")
SEED = 1


def interrupt(server: str, hits: int, pairs: list[tuple[str, str]], timeout: float = 100) -> None:
    """Interrupt each outer method by the inner one so many times; what went wrong is the failure's text."""
    words = [word for pair in pairs for word in pair]
    command = [sys.executable, str(SCRIPT), server, str(SEED), str(hits), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise AssertionError(f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}")


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ("stop", "stop"),
        ("stop", "start"),
        ("start", "subscribe"),
        ("start", "stop"),
        ("start", "start"),
        ("subscribe", "subscribe"),
        ("notify", "notify"),
    ],
)
def test_often(server: str, outer: str, inner: str) -> None:
    """Guarantee 11: two SIGTERMs to a service, a reload in a stop, a subscription in a start with 1,000 others."""
    interrupt(server, 1000 if LONG else 60, [(outer, inner)], 600)


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("outer", METHODS)
def test_each_in_each(server: str, outer: str) -> None:
    """Guarantee 11: no error, no hang, and never running without hearing."""
    pairs = [(outer, inner) for inner in METHODS if (outer, inner) != ("notify", "notify")]  # that is `test_often`
    interrupt(server, 300 if LONG else 4, pairs, 1900)
