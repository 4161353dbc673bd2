"""What comes in: many at once, and one at a time; each in one process with one reader. Plain numbers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any
from uuid import uuid4

import psycopg

from .process import memory, peak
from .readers import EVERY

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120.0  # seconds for anything to arrive
PAYLOADS = {
    "integers": "i::text",
    "rows": (
        """format('{"id": %s, "op": "UPDATE", "table": "orders", "customer": "c-%s", "total": %s.5, """
        """"at": "2024-05-06T07:08:09", "status": "shipped", "items": [1, 2, 3]}', i, i % 97, i % 1000)"""
    ),
}


def new_channel() -> str:
    return f"bench_{uuid4().hex[:12]}"


class Counter:
    """Counts calls; knows when the first and the last of `wanted` came."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.count = wanted, 0
        self.first = self.last = 0.0
        self.full = threading.Event()

    def __call__(self, payload: Any) -> None:
        self.count = count = self.count + 1
        if count == 1:
            self.first = perf_counter()
        if count == self.wanted:
            self.last = perf_counter()
            self.full.set()

    def wait(self) -> None:
        if not self.full.wait(LIMIT):
            raise TimeoutError(f"{self.count} of {self.wanted} came")


def burst(sender: psycopg.Connection[Any], channel: str, payload: str, count: int) -> None:
    """`count` notifications from one transaction; `payload` is SQL over the number `i`."""
    sender.execute(f"select count(pg_notify('{channel}', {payload})) from generate_series(1, {count}) i".encode())


def sized(size: int) -> str:
    """A JSON string of that many bytes, different for each `i`."""
    return f"""'"' || lpad(i::text, {max(size, 10) - 2}, 'x') || '"'"""


def throughput(dsn: str, reader: str, payload: str, count: int, bursts: int = 3) -> dict[str, float]:
    """Notifications a second and CPU a message, of the best of a few bursts; and the memory that it took."""
    channel, rates, cpus = new_channel(), [], []
    counter = Counter(1)
    target: list[Callable[[Any], None]] = [counter]
    before = memory()
    r = EVERY[reader](dsn, channel, lambda payload: target[0](payload))
    idle = memory()
    try:
        with psycopg.connect(dsn, autocommit=True) as sender:
            burst(sender, channel, payload, 1)
            counter.wait()
            for _ in range(bursts):
                target[0] = counter = Counter(count)
                cpu = process_time()
                burst(sender, channel, payload, count)
                counter.wait()
                cpus.append((process_time() - cpu) / count * 1e6)
                rates.append(count / (counter.last - counter.first))
    finally:
        r.close()
    return {"rate": median(rates), "cpu_us": median(cpus), "idle_mib": idle - before, "peak_mib": peak() - before}


def latency(dsn: str, reader: str, count: int, gap: float = 0.002) -> dict[str, Any]:
    """From just before the sender's statement, in another process, to the callback: microseconds."""
    channel, delays = new_channel(), []
    counter = Counter(count)

    def fn(payload: float) -> None:
        delays.append((perf_counter() - float(payload)) * 1e6)
        counter(payload)

    r = EVERY[reader](dsn, channel, fn)
    try:
        arguments = [sys.executable, "-m", f"{__package__}.sender", dsn, channel, str(count), str(gap)]
        folder = ROOT if __package__ == "tests.bench" else ROOT / "tests"
        subprocess.run(arguments, check=True, cwd=folder, timeout=LIMIT)
        counter.wait()
    finally:
        r.close()
    delays = sorted(delays[count // 10 :])
    return {"p50": quantile(delays, 0.5), "p99": quantile(delays, 0.99), "sorted_us": delays[:: max(1, count // 500)]}


def quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]
