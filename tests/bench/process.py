"""What the process itself takes: wake-ups, memory, imports, and how fast the machine is at the moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import timeit
from pathlib import Path
from statistics import median

LIMIT = 30.0  # seconds for an import


def reference() -> float:
    """Microseconds of `json.loads("42")`, to compare absolute times of machines: the best of a few."""
    return min(timeit.repeat(lambda: json.loads("42"), number=2_000, repeat=7)) / 2_000 * 1e6


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
