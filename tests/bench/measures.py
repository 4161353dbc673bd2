"""What is measured, each in one process with one reader. Every function returns plain numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any
from uuid import uuid4

import psycopg

from .readers import READERS, Ours

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
    r = READERS[reader](dsn, channel, lambda payload: target[0](payload))
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

    r = READERS[reader](dsn, channel, fn)
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


def change(dsn: str, reader: str, count: int, gap: float = 0.002) -> dict[str, float]:
    """One more channel: milliseconds, with a pause between (as programs do) and back to back."""
    r = READERS[reader](dsn, new_channel(), print)
    try:
        paused, hot = [], []
        for n in range(count):
            sleep(gap)
            paused.append(r.add(new_channel()) * 1e3)
            if n % 2:
                hot.append(r.add(new_channel()) * 1e3)
    finally:
        r.close()
    return {"p50": median(paused), "hot_p50": median(hot or paused)}


def growth(dsn: str, reader: str, channels: int, count: int) -> dict[str, float]:
    """With so many channels registered: setting up (seconds), then single changes and a message (milliseconds)."""
    r: Ours = READERS[reader](dsn, new_channel(), print)
    n = r.notifier
    names = [new_channel() for _ in range(channels)]
    target = new_channel()
    result: dict[str, float] = {}
    try:
        began = perf_counter()
        for name in names:
            n.subscribe(name, name, print, autorun=False)
        n.start()
        result["setup"] = perf_counter() - began

        def timed(what: str, f: Callable[[int], Any], between: Callable[[int], Any] = lambda k: None) -> None:
            times = []
            for k in range(count):
                sleep(0.001)
                began = perf_counter()
                f(k)
                times.append((perf_counter() - began) * 1e3)
                between(k)
            result[what] = median(times)

        timed("subscribe", lambda k: n.subscribe("more", f"{target}{k}", print))
        timed("mute_channels", lambda k: n.mute_channels(f"{target}{k}"), lambda k: n.unmute_channels(f"{target}{k}"))
        timed(
            "mute_subscriber",
            lambda k: n.mute_subscriber("more", f"{target}{k}"),
            lambda k: n.unmute_subscriber("more", f"{target}{k}"),
        )
        event = threading.Event()
        n.subscribe("message", target, lambda *a: event.set())
        with psycopg.connect(dsn, autocommit=True) as sender:

            def message(k: int) -> None:
                event.clear()
                sender.execute("select pg_notify(%s, %s)", (target, str(k)))
                event.wait(LIMIT)

            timed("message", message)
        result["resident_mib"] = memory()
    finally:
        r.close()
    return result


def fanout(dsn: str, reader: str, subscribers: int, count: int) -> dict[str, float]:
    """One notification for all subscribers of a channel: microseconds a subscriber, from sending to the last call."""
    counter = Counter(1)

    def fn(id: Any, channel: str, payload: Any, pid: int) -> None:
        counter(payload)

    channel = new_channel()
    r: Ours = READERS[reader](dsn, new_channel(), print)
    times, spans = [], []
    try:
        for id in range(subscribers):
            r.notifier.subscribe(id, channel, fn, autorun=False)
        r.notifier.start()
        with psycopg.connect(dsn, autocommit=True) as sender:
            for k in range(count):
                counter = Counter(subscribers)
                began = perf_counter()
                sender.execute("select pg_notify(%s, %s)", (channel, str(k)))
                counter.wait()
                times.append((counter.last - began) / subscribers * 1e6)
                spans.append((counter.last - counter.first) / subscribers * 1e6)
    finally:
        r.close()
    return {"us": median(times), "calls_us": median(spans)}


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


def wakeups() -> int:
    """Voluntary context switches of all threads but this one. Linux only; elsewhere 0."""
    total = 0
    for task in Path("/proc/self/task").glob("*"):
        if int(task.name) != threading.get_native_id():
            total += _number(task / "status", "voluntary_ctxt_switches")
    return total


def memory() -> float:
    """MiB resident now; Linux only."""
    return _number(Path("/proc/self/status"), "VmRSS") / 1024


def peak() -> float:
    return _number(Path("/proc/self/status"), "VmHWM") / 1024


def _number(file: Path, key: str) -> int:
    try:
        for line in file.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def import_time(dsn: str, reader: str) -> dict[str, float]:
    """Milliseconds that `import pgnotifier` adds to `import psycopg`, in a fresh process."""
    program = "import psycopg, time; t = time.perf_counter(); import pgnotifier; print(time.perf_counter() - t)"
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    times = []
    for _ in range(4):  # the first may have to compile
        done = subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, env=environ, timeout=LIMIT
        )
        times.append(float(done.stdout) * 1e3)
    return {"ms": median(times[1:])}


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f for f in (throughput, latency, change, growth, fanout, idle, import_time)
}
