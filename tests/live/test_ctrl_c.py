"""Guarantee 11: after Ctrl-C in any method the next `stop()` cleans up, and the next `start()` works.

PGNOTIFIER_LONG=1 has each method interrupted four hundred times.
"""

from __future__ import annotations

import os

import pytest

from interrupts import METHODS
from test_signals import interrupt

LONG = os.environ.get("PGNOTIFIER_LONG") == "1"


@pytest.mark.timeout(2000)
@pytest.mark.parametrize(
    "method",
    [
        "start",
        *(method for method in METHODS if method != "start"),
    ],
)
def test_stop_and_start_work_after_it(server: str, method: str) -> None:
    """Guarantee 11: a probe is heard, nothing is pending, and `stop()` leaves no thread."""
    often = method in ("start", "stop", "restart", "subscribe", "notify")
    interrupt(server, 400 if LONG else 40 if often else 10, [(method, "KeyboardInterrupt")], 1900)
