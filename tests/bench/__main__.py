"""One command: makes what it needs, measures, prints a table, writes JSON and plots."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from . import environment

ROOT = Path(__file__).resolve().parents[2]


BEGIN, END = "<!-- table: written by python -m tests.bench -->", "<!-- end of table -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure guarantee 15, side by side.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, to see that it works")
    parser.add_argument("--rounds", type=int, help="default: 7, with --quick 2")
    parser.add_argument("--out", type=Path, help="default: docs/performance, with --quick nowhere")
    parser.add_argument("--only", default="", help="experiments whose name begins with one of these, by commas")
    parser.add_argument("--venvs", type=Path, default=ROOT / ".venv-bench", help="default: .venv-bench")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: tables and plots of the last results")
    options = parser.parse_args()
    if not environment.complete():
        python = environment.make(options.venvs / "here", "-e", f"{ROOT}[bench]")
        return subprocess.run([python, "-m", "tests.bench", *sys.argv[1:]], cwd=ROOT).returncode
    if options.redraw:
        from . import plots, report, rows

        last = json.loads((ROOT / "docs" / "performance" / "results.json").read_text())
        plots.write(last["results"], ROOT / "docs" / "performance")
        page(report.text(last["results"], rows.rows(False), last["machine"]))
        return 0
    old = environment.make(options.venvs / "old", "pgnotifier==0.0.10", "psycopg[binary]")

    from . import plots, report, rows, run

    wanted = tuple(options.only.split(","))
    plan = [e for e in rows.experiments(options.quick) if e.name.startswith(wanted)]
    with run.server() as dsn:
        machine = report.machine(dsn)
        results = run.rounds(dsn, plan, options.rounds or (2 if options.quick else 7), old)
    text = report.text(results, rows.rows(options.quick), machine)
    print(text)
    out = options.out or (None if options.quick or options.only else ROOT / "docs" / "performance")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps({"machine": machine, "results": report.rounded(results)}) + "\n")
        plots.write(results, out)
        if options.out is None:
            page(text)
    return 0


def page(text: str) -> None:
    """Put the tables into docs/performance.md."""
    path = ROOT / "docs" / "performance.md"
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    sys.exit(main())
