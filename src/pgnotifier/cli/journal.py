"""`pgnotifier journal ...`: its arguments and commands (guarantees 14 and 18)."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from json import dumps

from ..journal import Entry, Journal
from ..notifier import Notifier
from .advice import CommandFailed
from .terminal import Line, Terminal, printable

JOURNAL = """\
examples:
  pgnotifier journal install --keep 30d                the tables and functions, in schema pgnotifier
  pgnotifier journal install --sql | psql app          the same, to be read first
  pgnotifier journal status                            its entries and consumers
  pgnotifier journal publish orders '{"id": 42}'
  pgnotifier journal tail orders --beginning --json | jq .payload
  pgnotifier journal trim 90d --evict                  consumers that have not had them get a gap
  pgnotifier journal remove mailer                     a consumer that has retired
"""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

Run = Callable[[Journal, argparse.Namespace, Terminal], int]
Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(command: Add, channel: Callable[[str], str]) -> None:
    """Add the commands. `command(name, run, text)` makes one, with the common options."""

    def one(name: str, run: Run, text: str) -> argparse.ArgumentParser:
        made = command(name, lambda args: _run(run, args), text)
        made.add_argument("--schema", default="pgnotifier", type=channel, help="where its tables are")
        return made

    install = one("install", _install, "make the tables and functions, or bring them up to date")
    install.add_argument("--sql", action="store_true", help="write the SQL instead of running it")
    install.add_argument("--keep", type=_age, metavar="AGE", default=timedelta(days=7), help="such as 30d; 7d; never")
    status = one("status", _status, "show its entries and consumers")
    status.add_argument("--json", action="store_true", help="one JSON object")
    publish = one("publish", _publish, "write an entry, and its id")
    publish.add_argument("channel", metavar="CHANNEL", type=channel)
    publish.add_argument("payload", metavar="PAYLOAD", nargs="?", default="", help='"-": all of standard input')
    tail = one("tail", _tail, "write entries as they are committed; it consumes nothing")
    tail.add_argument("channel", metavar="CHANNEL", nargs="+", type=channel)
    tail.add_argument("--beginning", action="store_true", help="with all that is there")
    tail.add_argument("--json", action="store_true", help="one JSON object a line")
    trim = one("trim", _trim, "delete entries that every consumer has had")
    trim.add_argument("age", metavar="AGE", type=_age, help="least age of an entry to delete, such as 30d, 12h, 0s")
    trim.add_argument("--evict", action="store_true", help="also those that a consumer has not had; it gets a gap")
    remove = one("remove", _remove, "forget a consumer that has retired")
    remove.add_argument("name", metavar="CONSUMER")


def _run(run: Run, args: argparse.Namespace) -> int:
    with Journal(args.dsn, args.schema) as journal:
        return run(journal, args, Terminal(json=getattr(args, "json", False)))


def _install(journal: Journal, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.sql:
        terminal.write([[(line, "")] for line in journal.sql(args.keep).splitlines()])
        return 0
    journal.install(args.keep)
    terminal.note([[(f"the journal is in schema {printable(args.schema)}", "ok")]])
    return 0


def _publish(journal: Journal, args: argparse.Namespace, terminal: Terminal) -> int:
    payload = sys.stdin.buffer.read().decode() if args.payload == "-" else args.payload
    terminal.write([[(str(journal.publish(args.channel, payload)), "")]])
    return 0


def _trim(journal: Journal, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.age is None:
        raise CommandFailed("trim needs an age, such as 30d")
    terminal.write([[(f"{journal.trim(args.age, args.evict):,} deleted", "")]])
    return 0


def _remove(journal: Journal, args: argparse.Namespace, terminal: Terminal) -> int:
    if not journal.remove(args.name):
        raise CommandFailed(f"there is no consumer {args.name!r}")
    return 0


def _tail(journal: Journal, args: argparse.Namespace, terminal: Terminal) -> int:
    with Notifier(args.dsn, decode=str) as n:
        for entry in journal.tail(n, args.channel, "beginning" if args.beginning else "now"):
            terminal.write([_line(entry, args.json)])
    raise CommandFailed("the listener has stopped")


def _line(entry: Entry, as_json: bool) -> Line:
    if as_json:
        return [(dumps({**entry._asdict(), "at": entry.at.isoformat()}), "")]
    time = f"{entry.at:%H:%M:%S} "
    return [
        (time, "dim"),
        (f"{entry.id} ", "dim"),
        (f"{printable(entry.channel)} ", "channel"),
        (printable(entry.payload), ""),
    ]


def _status(journal: Journal, args: argparse.Namespace, terminal: Terminal) -> int:
    status = journal.status()
    if args.json:
        keep = status["keep"]
        terminal.write([[(dumps({**status, "keep": keep and keep.total_seconds()}, default=str), "")]])
        return 0
    kept = "for ever" if status["keep"] is None else f"for {status['keep']}"
    lines: list[Line] = [
        [(f"{status['entries']:,} entries, {status['bytes'] / 1e6:,.1f} MB, kept {kept}", "heading")]
    ]
    if status["restored"]:
        lines.append([("restored from another cluster: the next consumer that starts mends it", "warning")])
    for c in status["consumers"]:
        who = f"active (pid {c['pid']})" if c["active"] else "not active"
        lag = f"{c['lag']:,} behind, {c['lag_seconds']:,.1f} s" if c["lag"] else "up to date"
        text = f"{printable(c['name'])}: {who}, {lag}; {printable(', '.join(c['channels']))}"
        lines.append([(text, "" if c["active"] or not c["lag"] else "warning")])
        if c["held"]:
            lines.append([(f"  holds {c['held']:,} entries that are older than that", "warning")])
        if c["gaps"]:
            lines.append([(f"  gaps to report to it: {', '.join(c['gaps'])}", "warning")])
    if not status["consumers"]:
        lines.append([("no consumers", "dim")])
    if (opened := status["oldest_transaction"]) is not None:
        where = f"pid {opened['pid']} of {opened['user']} in {opened['database']}, {opened['state']}"
        lines.append(
            [(f"the oldest open transaction has run for {opened['seconds']:,.1f} s: {printable(where)}", "dim")]
        )
    terminal.write(lines)
    return 0


def _age(text: str) -> timedelta | None:
    if text == "never":
        return None
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"a number with s, m, h or d, such as 30d, not {text!r}")
    return timedelta(**{UNITS[found[2]]: int(found[1])})
