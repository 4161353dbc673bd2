"""The plots that docs/performance.md shows."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from .charts import bars, lines
from .report import spread, values
from .rows import COUNTS, OLD, OURS, SIZES
from .run import Results


def all_plots(results: Results) -> dict[str, str]:
    """SVG by name, of what was measured."""
    plots = {"latency": _latency(results), "payload-size": _sizes(results)}
    plots["channels"] = lines(
        "Cost against the number of channels",
        "channels registered",
        "milliseconds, median",
        {
            **{what: _grown(results, "growth", OURS, what) for what in ("subscribe", "mute_channels", "message")},
            "0.0.10 subscribe": _grown(results, "old growth", OLD, "subscribe"),
            "0.0.10 message": _grown(results, "old growth", OLD, "message"),
        },
    )
    plots["subscribers"] = lines(
        "One notification against the number of its subscribers",
        "subscribers of the channel",
        "microseconds a subscriber, median",
        {
            "sent to last call": _grown(results, "fanout", OURS, "us"),
            "first to last call": _grown(results, "fanout", OURS, "calls_us"),
        },
    )
    for name, experiment, metric, title, unit in (
        ("cpu", "rows", "cpu_us", "CPU for one row-sized JSON notification", "µs"),
        ("idle", "idle", "wakeups", "Wake-ups of an idle reader", "/s"),
        ("memory", "rows", "peak_mib", "Memory at most, 50,000 notifications at once", "MiB"),
        ("throughput", "rows", "rate", "Row-sized JSON notifications a second", "/s"),
    ):
        found = {r: values(results, experiment, r, metric) for r in results.get(experiment, {})}
        plots[name] = bars(title, unit, {r: spread(v) for r, v in found.items() if v})
    return plots


def write(results: Results, folder: Path) -> None:
    for name, svg in all_plots(results).items():
        (folder / f"{name}.svg").write_text(svg)


def fleet(runs: list[dict[str, Any]], folder: Path) -> None:
    """Two plots of what `fleet` measured, one run for each version of PostgreSQL."""
    cost: dict[str, list[tuple[float, float]]] = {}
    limit: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        version = f"PostgreSQL {run['major']}"
        for kind, name in (("together", "all hear it"), ("apart", "one hears it")):
            found = [one for one in run[kind] if one["hosts"]]
            cost[f"{version}, {name}"] = [(one["hosts"], one["commit_us"]) for one in found]
            limit[f"{version}, {name}"] = [(one["hosts"], one["commits"]) for one in found]
        cost[f"{version}, subscribers of one session"] = [
            (one["subscribers"], one["commit_us"]) for one in run["shared"]
        ]
    x_title = "listening sessions, or subscribers of one"
    title = "CPU that a notifying commit takes in the server"
    (folder / "fleet-cost.svg").write_text(lines(title, x_title, "microseconds", cost))
    title = "Notifying commits a second, at most"
    (folder / "fleet-limit.svg").write_text(lines(title, x_title, "commits a second", limit))


def _grown(results: Results, experiment: str, reader: str, metric: str) -> list[tuple[float, float]]:
    found = [(n, values(results, f"{experiment} {n}", reader, metric)) for n in COUNTS]
    return [(n, median(v)) for n, v in found if v]


def _sizes(results: Results) -> str:
    series: dict[str, list[tuple[float, float]]] = {}
    for size in SIZES:
        for reader in results.get(f"size {size}", {}):
            series.setdefault(reader, []).append((size, median(values(results, f"size {size}", reader, "rate"))))
    return lines("Throughput by payload size", "bytes a payload", "notifications a second, median", dict(series))


def _latency(results: Results) -> str:
    """Each reader's distribution: microseconds against the share that took longer."""
    series = {}
    for reader, found in results.get("latency", {}).items():
        every = sorted(x for r in found for x in r["sorted_us"])
        step = max(1, len(every) // 150)
        series[reader] = [
            (x, 1 - k / len(every)) for k, x in enumerate(every) if not k % step or k > len(every) * 0.99
        ]
    return lines("Latency, one notification at a time", "microseconds", "share that took longer", series)
