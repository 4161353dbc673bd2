"""What is run in every round, and the rows of guarantee 15 that are read from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .bursts import PAYLOADS, sized
from .readers import READERS

ALL = tuple(READERS)
OURS, BASE, ASYNCPG, OLD = "ours", "psycopg", "asyncpg", "0.0.10"
FROM_THREAD = "asyncpg from a thread"
DECODERS = ("ours, orjson", "ours, msgspec")
STREAM = "ours, stream"
COUNTS = (10, 100, 1_000, 10_000)
SIZES = (10, 100, 1_000, 4_000, 7_900)


@dataclass(frozen=True)
class Experiment:
    """One measure with its arguments, for each of its readers, in `share` of the rounds."""

    name: str
    measure: str
    arguments: dict[str, Any]
    readers: tuple[str, ...] = (OURS,)
    share: float = 1.0


@dataclass(frozen=True)
class Row:
    """A number of `reader`, at most `most`, and `against` others: (experiment, reader): (word, limit of ratio)."""

    title: str
    experiment: str
    metric: str
    unit: str
    most: float | None = None
    against: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    reader: str = OURS


def experiments(quick: bool) -> list[Experiment]:
    many = 2_000 if quick else 50_000
    few = (10, 200) if quick else COUNTS
    times = 10 if quick else 40
    result = [
        Experiment("rows", "throughput", {"payload": PAYLOADS["rows"], "count": many}, ALL),
        Experiment("integers", "throughput", {"payload": PAYLOADS["integers"], "count": many}, ALL),
        Experiment("decoders", "throughput", {"payload": PAYLOADS["rows"], "count": many}, (OURS, *DECODERS)),
        Experiment("latency", "latency", {"count": 50 if quick else 1_000}, ALL),
        Experiment("change", "change", {"count": 10 if quick else 100}, (OURS, ASYNCPG, FROM_THREAD, OLD)),
        Experiment("idle", "idle", {"seconds": 0.3 if quick else 3}, ALL),
        Experiment("import", "import_time", {}),
        *(Experiment(f"layers {p}", "layers", {"payload": PAYLOADS[p], "count": many}) for p in PAYLOADS),
        *(Experiment(f"growth {n}", "growth", {"channels": n, "count": times}) for n in few),
        *(Experiment(f"fanout {n}", "fanout", {"subscribers": n, "count": times}) for n in few),
        Experiment("streams", "streams", {"streams": few[-1] // 10, "count": times}),
        Experiment("notifiers", "notifiers", {"notifiers": few[-1] // 100, "count": times}),
    ]
    if not quick:
        for n in COUNTS[:3]:
            result.append(Experiment(f"old growth {n}", "growth", {"channels": n, "count": 5}, (OLD,), 0.3))
        for size in SIZES:
            arguments = {"payload": sized(size), "count": 200_000 // (10 + size // 100)}
            result.append(Experiment(f"size {size}", "throughput", arguments, (OURS, BASE, ASYNCPG, OLD), 0.4))
    return result


def rows(quick: bool) -> list[Row]:
    n = 200 if quick else 10_000
    least, most = "at least", "at most"
    result = [
        Row(
            "throughput, row-sized JSON",
            "rows",
            "rate",
            "/s",
            against={("rows", BASE): (least, 0.85), ("rows", OLD): (least, 6.0)},
        ),
        *(
            Row(
                f"the same with {name.split()[1]}",
                "decoders",
                "rate",
                "/s",
                None,
                {("decoders", OURS): (least, 1)},
                name,
            )
            for name in DECODERS
        ),
        Row("throughput, integers", "integers", "rate", "/s", against={("integers", BASE): (least, 0.85)}),
        Row("latency p50", "latency", "p50", "µs", against={("latency", BASE): (most, 1.4)}),
        Row("latency p99", "latency", "p99", "µs", against={("latency", BASE): (most, 1.75)}),
        Row("a stream, rows", "rows", "rate", "/s", against={("rows", BASE): (least, 0.95)}, reader=STREAM),
        Row(
            "a stream, latency p50", "latency", "p50", "µs", against={("latency", BASE): (most, 1.35)}, reader=STREAM
        ),
        Row(
            "subscribe, new channel, p50",
            "change",
            "p50",
            "ms",
            against={
                ("change", ASYNCPG): (most, 1.5),
                ("change", FROM_THREAD): (most, 1.2),
                ("change", OLD): (most, 0.125),
            },
        ),
        Row("idle wake-ups", "idle", "wakeups", "/s", most=0.0),
    ]
    for what in ("subscribe", "mute_channels", "mute_subscriber"):
        result.append(
            Row(f"{what} at {n:,} channels", f"growth {n}", what, "ms", against={("growth 10", OURS): (most, 3.0)})
        )
    result += [
        Row(f"{n:,} channels and one start()", f"growth {n}", "setup", "s", most=1.5),
        Row(f"fan-out to {n:,}, a subscriber", f"fanout {n}", "us", "µs", most=1.5),
        Row(f"{n // 10:,} async streams, memory of one", "streams", "kib", "KiB", most=5.0),
        Row("the same, to hear one notification, a stream", "streams", "us", "µs"),
        Row(f"{n // 100:,} notifiers, to start them all", "notifiers", "starting", "s"),
        Row("the same, memory of one", "notifiers", "kib", "KiB"),
        Row("the same, until all have heard one notification", "notifiers", "ms", "ms"),
        Row("the same, idle wake-ups", "notifiers", "wakeups", "/s", most=0.0),
        Row("the same, to stop them one by one", "notifiers", "stopping", "s"),
        Row("import pgnotifier", "import", "ms", "ms", most=30.0),
    ]
    return result
