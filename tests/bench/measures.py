"""All that is measured, by name, each in one process with one reader. Every function returns plain numbers."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time, sleep
from typing import Any

from .bursts import latency, new_channel, throughput
from .changes import change, fanout, growth
from .layers import layers
from .many import notifiers, streams
from .process import import_time, wakeups
from .readers import READERS


def idle(dsn: str, reader: str, seconds: float) -> dict[str, float]:
    """Wake-ups a second of the reader's threads (voluntary context switches), and its CPU; the main thread sleeps."""
    r = READERS[reader](dsn, new_channel(), print)
    try:
        sleep(0.2)
        switches, cpu = wakeups(), process_time()
        sleep(seconds)
        return {
            "wakeups": (wakeups() - switches) / seconds,
            "cpu_us": (process_time() - cpu) / seconds * 1e6,
        }
    finally:
        r.close()


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f
    for f in (throughput, latency, change, growth, fanout, streams, notifiers, idle, import_time, layers)
}
