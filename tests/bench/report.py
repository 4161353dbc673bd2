"""The table: medians and quartiles, ratios of each round, versions."""

from __future__ import annotations

import os
import platform
from statistics import median, quantiles
from typing import Any

from .layers import LAYERS
from .rows import OURS, Row
from .run import Results

REFERENCE = 0.6  # microseconds of `json.loads("42")` on the reference machine


def machine(dsn: str) -> dict[str, str]:
    import psycopg

    with psycopg.connect(dsn) as conn:
        postgres = str(conn.info.parameter_status("server_version"))
    return {
        "python": platform.python_version(),
        "postgresql": postgres,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
    }


def spread(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, median(values), high


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(values: list[float], unit: str = "") -> str:
    low, middle, high = spread(values)
    return f"{short(middle)}{unit and ' ' + unit} ({short(low)} to {short(high)})"


def values(results: Results, experiment: str, reader: str, metric: str) -> list[float]:
    return [r[metric] for r in results.get(experiment, {}).get(reader, [])]


def judged(results: Results, row: Row) -> list[tuple[str, str, str, bool]]:
    """Lines (ratio, limit, reached) of one row, as far as it was measured."""
    mine = values(results, row.experiment, row.reader, row.metric)
    lines = []
    if mine and row.most is not None:
        scaled = ""
        if row.most:
            speeds = values(results, row.experiment, row.reader, "reference_us")
            then = [value * REFERENCE / speed for value, speed in zip(mine, speeds, strict=True)]
            scaled = f"{short(median(then))} {row.unit}, scaled"
        lines.append((scaled, f"at most {row.most:g} {row.unit}", median(mine) <= row.most))
    for (experiment, reader), (word, limit) in row.against.items():
        others = values(results, experiment, reader, row.metric)
        ratios = [a / b for a, b in zip(mine, others, strict=False)]
        if ratios:
            reached = median(ratios) >= limit if word == "at least" else median(ratios) <= limit
            name = reader if experiment == row.experiment else f"that at {experiment.split()[-1]}"
            low, middle, high = map(short, spread(ratios))
            lines.append((f"{middle} of {name} ({low} to {high})", f"{word} {limit:g}", reached))
    return lines or [("", "", True)] * bool(mine)  # a row without a limit


def text(results: Results, table: list[Row], about: dict[str, str]) -> str:
    lines = [
        "Medians, and quartiles in brackets. Each ratio is of two figures of one round. “Scaled” means: to the",
        "reference machine.",
        "",
        "| what | ours | ratio | wanted | reached |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in table:
        mine = values(results, row.experiment, row.reader, row.metric)
        for number, (ratio, limit, reached) in enumerate(judged(results, row)):
            first = (row.title, f"{short(median(mine))} {row.unit}") if not number else ("", "")
            lines.append(
                f"| {' | '.join((*first, ratio, limit, ('yes' if reached else '**no**') if limit else ''))} |"
            )
    for part in (SPEED, COSTS):
        lines += ["", *_readers(results, part)]
    lines += ["", *_layers(results), "", _versions(results, about)]
    return "\n".join(lines)


SPEED = (
    ("rows", "rate", "JSON rows /s"),
    ("integers", "rate", "integers /s"),
    ("rows", "cpu_us", "CPU µs a row"),
    ("latency", "p50", "latency p50 µs"),
    ("latency", "p99", "p99 µs"),
)
COSTS = (
    ("change", "p50", "one more channel, ms"),
    ("change", "hot_p50", "the same back to back"),
    ("idle", "wakeups", "idle wake-ups /s"),
    ("idle", "cpu_us", "idle CPU µs/s"),
    ("rows", "idle_mib", "memory idle, MiB"),
    ("rows", "peak_mib", "at most"),
)


def _readers(results: Results, part: tuple[tuple[str, str, str], ...]) -> list[str]:
    """A table of medians; the JSON has the quartiles."""
    columns = [c for c in part if c[0] in results]
    if not columns:
        return []
    names: dict[str, Any] = dict.fromkeys(name for c in columns for name in results[c[0]])
    lines = [f"| reader | {' | '.join(c[2] for c in columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for name in names:
        cells = [values(results, experiment, name, metric) for experiment, metric, _ in columns]
        lines.append(f"| {name} | {' | '.join(short(median(c)) if c else '' for c in cells)} |")
    return lines


def _layers(results: Results) -> list[str]:
    """CPU of each layer: what it adds to all below it."""
    found = {name.partition(" ")[2]: name for name in results if name.startswith("layers ")}
    heads = " | ".join(f"{what}, in all | added" for what in found)
    lines = [f"| CPU µs a message | {heads} |", "| --- " * (2 * len(found) + 1) + "|"]
    before = dict.fromkeys(found, 0.0)
    for layer in LAYERS:
        cells = [f"| {layer} "]
        for what, name in found.items():
            every = values(results, name, OURS, layer)
            cells.append(f"| {shown(every)} | {short(median(every) - before[what])} ")
            before[what] = median(every)
        lines.append("".join(cells) + "|")
    return lines if found else []


def _versions(results: Results, about: dict[str, str]) -> str:
    found: dict[str, None] = {}
    speeds = [r["reference_us"] for readers in results.values() for rounds in readers.values() for r in rounds]
    for readers in results.values():
        for rounds in readers.values():
            for result in rounds:
                found.update(dict.fromkeys(f"{name} {v}" for name, v in result["versions"].items()))
    return (
        f"Python {about['python']}, PostgreSQL {about['postgresql']}, {about['system']}, {about['cores']} cores; "
        f"{', '.join(sorted(found))}. `json.loads('42')` took {shown(speeds, 'µs')} here, and {REFERENCE} µs on "
        "the reference machine."
    )


def rounded(value: Any) -> Any:
    """`value` with floats of four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value
