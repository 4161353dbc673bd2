"""The benchmark works: its short form, in this process, without judging times (guarantee 15)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from bench import bursts, changes, layers, many, measures, plots, process, report, rows, trace
from bench.readers import READERS

TINY: list[tuple[str, dict[str, Any]]] = [
    ("throughput", {"payload": bursts.PAYLOADS["rows"], "count": 200, "bursts": 1}),
    ("latency", {"count": 10}),
    ("idle", {"seconds": 0.05}),
]


@pytest.mark.parametrize(
    "reader", ["ours", "ours, stream", "ours, async stream", "psycopg", "psycopg, not decoded", "psycopg async"]
)
@pytest.mark.parametrize(("measure", "arguments"), TINY, ids=lambda v: v if isinstance(v, str) else "")
def test_readers(server: str, reader: str, measure: str, arguments: dict[str, Any]) -> None:
    result = measures.MEASURES[measure](server, reader, **arguments)
    assert all(value >= 0 for value in result.values() if isinstance(value, float))


def test_changes(server: str) -> None:
    assert changes.change(server, "ours", 3)["p50"] > 0
    grown = changes.growth(server, "ours", 5, 2)
    assert {"setup", "subscribe", "mute_channels", "mute_subscriber", "message"} <= grown.keys()
    assert changes.fanout(server, "ours", 20, 2)["us"] > 0
    assert process.import_time(server, "ours")["ms"] > 0


def test_many(server: str) -> None:
    assert many.streams(server, "ours", 5, 2)["us"] > 0
    found = many.notifiers(server, "ours", 3, 2)
    assert found["ms"] > 0
    assert found["threads"] >= 1


def test_layers(server: str) -> None:
    found = layers.layers(server, "ours", bursts.PAYLOADS["rows"], 200, 1)
    assert list(found) == list(layers.LAYERS)
    assert min(found.values()) > 0
    assert process.reference() > 0


@pytest.mark.parametrize("kind", ["callback", "stream"])
def test_trace(server: str, kind: str) -> None:
    """In a process of its own, for it replaces functions of the library."""
    command = [sys.executable, "-m", "tests.bench.trace", server, kind, "20"]
    text = subprocess.run(command, cwd=bursts.ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    assert [line.split()[2].rstrip(":") for line in text.splitlines()[1:]] == list(trace.STEPS)


def test_report() -> None:
    """Table, JSON and plots of made-up results."""
    number = {"reference_us": 0.5, "versions": {"pgnotifier": "1.0.0"}, "sorted_us": [1.0, 2.0]}
    metrics = (
        [row.metric for row in rows.rows(True)]
        + [c[1] for c in (*report.SPEED, *report.COSTS)]
        + ["calls_us", "message", *layers.LAYERS]
    )
    one = number | dict.fromkeys(metrics, 2.0)
    results = {e.name: {r: [one, one] for r in e.readers} for e in rows.experiments(True)}
    about = {"python": "3", "postgresql": "18", "system": "x", "cores": "2"}
    text = report.text(results, rows.rows(True), about)
    limited = [row for row in rows.rows(True) if row.most is not None or row.against]
    assert text.count("| yes |") + text.count("| **no** |") >= len(limited)
    for row in rows.rows(True):
        assert f"| {row.title} | 2 {row.unit} |" in text
        assert (f"| {row.title} | 2 {row.unit} |  |  |  |" in text) is (row not in limited)  # judged by no limit
    assert set(READERS) <= {line.split(" | ")[0].strip("| ") for line in text.splitlines()}
    json.dumps(report.rounded(results))
    drawn = plots.all_plots(results)
    assert drawn == plots.all_plots(results)  # the same files for the same figures
    assert all("<svg" in svg for svg in drawn.values())
    assert ">psycopg async</text>" in drawn["throughput"]
    assert ">message</text>" in drawn["channels"]
    assert plots.all_plots({}).keys() == drawn.keys()  # nothing was measured


FLEET = """
import json, sys
from tests.bench import fleet
fleet.RATES, fleet.SECONDS, fleet.BURST = ((50, 1), (10, 10)), 0.2, 0.1
server = fleet.Server(sys.argv[1])
print(json.dumps([fleet.measure(server, "apart", 2), fleet.measure(server, "shared", 1, 3), fleet.locked(server, 2)]))
"""


def test_fleet(server: str) -> None:
    """In a process of its own, for it forks."""
    command = [sys.executable, "-c", FLEET, server]
    text = subprocess.run(command, cwd=bursts.ROOT, check=True, capture_output=True, text=True, timeout=100).stdout
    apart, shared, locked = json.loads(text.splitlines()[-1])
    assert all(pace["arrival_p50_ms"] > 0 for pace in apart["paced"])
    assert (shared["hosts"], shared["subscribers"]) == (1, 3)
    assert min(apart["commits"], shared["commits"], locked["silent"], locked["notifying"]) > 0
