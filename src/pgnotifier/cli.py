"""The command line (contract 14): exit status 0, 1 for a failure, 2 for bad usage, 130 for Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import psycopg

from . import demo


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status; errors are one line on stderr."""
    parser = argparse.ArgumentParser(prog="pgnotifier", description="Subscribe to PostgreSQL NOTIFY channels.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("demo", help="show the main job on a throw-away PostgreSQL")
    show.add_argument("--dsn", help="use this database instead, and leave nothing in it")
    args = parser.parse_args(argv)
    try:
        demo.run(args.dsn)
    except KeyboardInterrupt:
        return 130
    except ImportError:
        return _failed(demo.INSTALL)
    except (demo.DemoFailed, psycopg.Error) as error:
        return _failed(" ".join(str(error).split()))
    return 0


def _failed(text: str) -> int:
    print(f"pgnotifier: {text}", file=sys.stderr)
    return 1
