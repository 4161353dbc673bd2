"""What a fleet of listening processes costs the server: `python -m tests.bench.fleet [--dsn URI] [--most 200]`.

Each process has a notifier of its own, as the hosts of a service have. For each number of processes the bench
measures how many notifying commits a second the server makes at most. At paced rates it measures how late the
notifications arrive and what CPU they take. `--dsn` names a server on this machine with enough connections. Without
it the bench starts one of its own, with fsync on.
"""

from __future__ import annotations

import argparse
import json
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, sleep
from typing import Any

import psutil
import psycopg

from . import plots
from .hosts import Fleet
from .report import rounded

FLEETS = (0, 2, 10, 20, 50, 100, 200)
RATES = ((1, 1), (10, 1), (100, 1), (1_000, 1), (10, 100))  # commits a second, notifications in each
SECONDS = 3.0  # of each paced measure
WRITERS = 4
BURST = 1.0  # seconds of commits without a pace
PATIENCE = 5.0  # seconds after which what has not arrived counts as not keeping up
# The server commits by itself, so that no client's time is in the rate.
COMMITS = """do $$ declare until timestamptz := clock_timestamp() + make_interval(secs => {seconds}); n int := 0;
begin while clock_timestamp() < until loop {work} commit; n := n + 1; end loop;
perform set_config('bench.commits', n::text, false); end $$"""
INSERT = "insert into bench_fleet values (n);"
NOTIFY = "perform pg_notify('fleet', extract(epoch from clock_timestamp())::text);"
SEND = "select count(pg_notify('fleet', (%s::float8 + i * 1e-9)::text)) from generate_series(1, %s) i"


class Server:
    """The CPU of a server's processes, and its rate of commits."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("create table if not exists bench_fleet (n int)")
            self.version = str(conn.info.parameter_status("server_version"))
            self.major = conn.info.server_version // 10_000
            parent = psutil.Process(conn.info.backend_pid).parent()
        assert parent is not None
        self.postmaster = parent

    def cpu(self) -> float:
        """Seconds, user and system, of all its processes; those that have ended are in the postmaster's account."""
        gone = self.postmaster.cpu_times()
        total = gone.children_user + gone.children_system
        for process in (self.postmaster, *self.postmaster.children()):
            with suppress(OSError):  # it has ended
                total += int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]) / 1e9
        return total

    def commits(self, work: str, writers: int) -> float:
        """Commits a second of so many sessions that commit `work` as fast as they can."""
        counts: list[int] = []

        def write() -> None:
            with psycopg.connect(self.dsn, autocommit=True) as conn:
                conn.execute(COMMITS.format(seconds=BURST, work=work).encode())
                row = conn.execute("select current_setting('bench.commits')::int").fetchone()
                assert row is not None
                counts.append(row[0])

        threads = [threading.Thread(target=write) for _ in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(counts) != writers:
            raise RuntimeError(f"{writers - len(counts)} of {writers} writers failed")
        return sum(counts) / BURST


def settle(fleet: Fleet, wanted: int) -> tuple[list[float], float, bool]:
    """Wait until all calls were made, `PATIENCE` seconds at most: the latencies, the CPU, and whether all were."""
    taken, cpu = fleet.report()
    deadline = perf_counter() + PATIENCE
    while len(taken) < wanted and perf_counter() < deadline:
        sleep(0.2)
        more, used = fleet.report()
        taken += more
        cpu += used
    return taken, cpu, len(taken) >= wanted


def drained(fleet: Fleet) -> None:
    """Wait until the fleet has heard all of a burst."""
    while fleet.report()[0]:
        sleep(0.5)


def paced(server: Server, fleet: Fleet, rate: int, batch: int) -> dict[str, Any]:
    """`rate` commits a second from one client, each with `batch` notifications; the CPU is of one notification."""
    count = max(5, int(rate * SECONDS))
    fleet.report()
    committed = []
    with psycopg.connect(server.dsn, autocommit=True) as sender:
        cpu, began = server.cpu(), perf_counter()
        for k in range(count):
            sleep(max(0.0, began + k / rate - perf_counter()))
            at = perf_counter()
            sender.execute(SEND, (at, batch))
            committed.append((perf_counter() - at) * 1e3)
        seconds = perf_counter() - began
        taken, theirs, kept_up = settle(fleet, count * batch * fleet.calls)
        used = server.cpu() - cpu
    return {
        "rate": rate,
        "batch": batch,
        "reached": count / seconds,
        "kept_up": kept_up and count / seconds > 0.9 * rate,
        "commit_p50_ms": median(committed),
        "arrival_p50_ms": median(taken) if taken else None,
        "arrival_p99_ms": quantiles(taken, n=100)[98] if len(taken) > 1 else None,
        "server_us": used / count / batch * 1e6,
        "fleet_us": theirs / count / batch * 1e6,
    }


def measure(server: Server, kind: str, hosts: int, subscribers: int = 1) -> dict[str, Any]:
    """One fleet at every pace and without one. `kind` "apart": only the first host listens to what is sent."""
    with Fleet(server.dsn, hosts, subscribers, apart=kind == "apart") as fleet:
        found: dict[str, Any] = {"kind": kind, "hosts": hosts, "subscribers": subscribers}
        found["paced"] = [paced(server, fleet, *pace) for pace in RATES if hosts]
        before = server.cpu()
        found["commits"] = server.commits(NOTIFY, WRITERS)
        drained(fleet)
        found["commit_us"] = (server.cpu() - before) / (found["commits"] * BURST) * 1e6
    print(json.dumps(found), flush=True)
    return found


def locked(server: Server, writers: int) -> dict[str, float]:
    """Commits a second of so many writers to a table: without a notification, and with one each."""
    return {
        "writers": writers,
        "silent": server.commits(INSERT, writers),
        "notifying": server.commits(INSERT + NOTIFY, writers),
    }


def results(server: Server, most: int) -> dict[str, Any]:
    fleets = [n for n in FLEETS if n <= most]
    return {
        "version": server.version,
        "major": server.major,
        "together": [measure(server, "together", n) for n in fleets],
        "apart": [measure(server, "apart", n) for n in fleets if n],
        "shared": [measure(server, "shared", 1, n) for n in fleets if n],
        "lock": [locked(server, writers) for writers in (1, 4, 16)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet")
    parser.add_argument("--dsn")
    parser.add_argument("--most", type=int, default=FLEETS[-1], help="processes (200)")
    parser.add_argument("--out", type=Path, help="a folder for the results and the plots")
    options = parser.parse_args()
    from tests.faults.servers import Server as Own

    with Own({"max_connections": 300, "fsync": "on"}) if options.dsn is None else nullcontext() as own:
        found = rounded(results(Server(options.dsn or own.dsn), options.most))
    if options.out is not None:
        (options.out / f"fleet-{found['major']}.json").write_text(json.dumps(found) + "\n")
        plots.fleet([json.loads(f.read_text()) for f in sorted(options.out.glob("fleet-*.json"))], options.out)


if __name__ == "__main__":
    main()
