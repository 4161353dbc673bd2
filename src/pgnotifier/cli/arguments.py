"""The arguments of the command line: the parser, its help texts, and the checks of values."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from ..connection.sender import MAX_PAYLOAD_BYTES
from ..validation import check_channel
from . import advice, journal
from .terminal import printable
from .trigger import parse_table

SHELLS = ("bash", "zsh")

DESCRIPTION = "Listen to PostgreSQL's NOTIFY channels, send to them, find out what keeps them from working."
EXAMPLES = """\
examples:
  pgnotifier demo                                      see it work, on a throw-away PostgreSQL
  pgnotifier doctor --dsn postgresql://localhost/app   can this database LISTEN and NOTIFY?
  pgnotifier listen orders customers                   a line per notification
  pgnotifier notify orders '{"id": 42}'                send one
  pgnotifier trigger orders | psql                     notify of every change to a table
  pgnotifier journal --help                            nothing missed while away

Without --dsn, libpq's environment variables are used (PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD, PGSERVICE)
and ~/.pgpass.
exit status: 0 success, 1 failure, 2 bad usage, 130 Ctrl-C
"""
LISTEN = """\
examples:
  pgnotifier listen orders
  pgnotifier listen orders customers --json | jq .payload
  pgnotifier listen --count 1 orders && echo "something happened"

A line is the time, the channel, the pid of the sender's session, the payload. With --json it is an object with
"time" (ISO 8601, UTC), "channel", "payload" (decoded) and "pid"; gaps, lost and regained connections are objects with
"event". Without --json those are lines on standard error. Lost connections are re-established automatically.
"""
NOTIFY = """\
examples:
  pgnotifier notify orders
  pgnotifier notify orders '{"id": 42, "op": "INSERT"}'
  pgnotifier notify orders -- --not-an-option
  jq -c '.[]' orders.json | pgnotifier notify orders -

The payload goes as it is given, up to 7999 bytes in UTF-8. With "-" every line of standard input is a notification
of its own, an empty line an empty one, each committed before the next is sent.
"""
DOCTOR = """\
examples:
  pgnotifier doctor --dsn postgresql://ada@localhost/app
  PGSERVICE=app pgnotifier doctor --json | jq 'select(.verdict != "ok")'

Each check is ok, a warning or failed, with a remedy. Changes nothing in the database. The exit status is 1 where a
check has failed.
"""
DEMO = """\
examples:
  pgnotifier demo
  pgnotifier demo --dsn postgresql://localhost/app
"""

TRIGGER = """\
examples:
  pgnotifier trigger orders | psql -v ON_ERROR_STOP=1
  pgnotifier trigger 'sales."Orders"' --channel orders > orders.sql

Writes SQL and connects to nothing. The channel is the table's name unless given. The script can be run again. Each
notification is a JSON object with "op", "schema", "table", "at", "key" and "row"; of a row that makes it longer than
7999 bytes it has the key only. TABLE is read as SQL reads it: Orders is orders, "Orders" is not.
"""
COMPLETION = """\
examples:
  pgnotifier completion bash > ~/.local/share/bash-completion/completions/pgnotifier
  pgnotifier completion zsh > "${fpath[1]}/_pgnotifier"

Needs shtab while it writes, and not afterwards: pip install shtab
"""

Run = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # A connection string in the wrong place is taken for a command, and may hold a password.
        message = re.sub(r"(invalid choice: ).*(?:://|=).*( \(choose)", r"\1...\2", message)
        self.exit(2, f"pgnotifier: {printable(message)} (try '{self.prog} --help')\n")


def read_arguments(argv: Sequence[str] | None, runs: Mapping[str, Run]) -> argparse.Namespace:
    """Return the arguments, with `run` from `runs` and `parser`. Bad usage raises `SystemExit`."""
    args, rest = make_parser(runs).parse_known_args(argv)
    if rest:
        if rest[0].startswith("-"):
            args.parser.error(f"unrecognized option: {rest[0].partition('=')[0]}")
        args.parser.error("too many arguments (quote what holds spaces)")  # not shown: perhaps the rest of a password
    return args


def make_parser(runs: Mapping[str, Run]) -> argparse.ArgumentParser:
    """Return the parser of all commands; `runs` has the function of each."""
    parser = _make(_Parser, prog="pgnotifier", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"pgnotifier {version('pgnotifier')}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(
        name: str, text: str, epilog: str = "", dsn: bool = True, run: Run | None = None, among: Any = subparsers
    ) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        made = _make(among.add_parser, name, help=text, description=description, epilog=epilog)
        made.set_defaults(run=run or runs[name], parser=made, dsn="")
        if dsn:
            made.add_argument(
                "-d", "--dsn", type=_dsn, default="", help="a URI or key=value pairs; else libpq's environment"
            )
        return made

    listen = command("listen", "write a line for every notification", LISTEN)
    listen.add_argument("channel", metavar="CHANNEL", nargs="+", type=_channel, help="its name, case and all")
    listen.add_argument("--json", action="store_true", help="one JSON object a line")
    listen.add_argument("-n", "--count", type=_count, metavar="N", help="end after N notifications")
    listen.add_argument("-q", "--quiet", action="store_true", help="don't say that listening has begun")

    notify = command("notify", "send a notification, or one for every line of standard input", NOTIFY)
    notify.add_argument("channel", metavar="CHANNEL", type=_channel, help="its name, case and all")
    notify.add_argument("payload", metavar="PAYLOAD", nargs="?", default="", type=_payload, help='"-": read stdin')

    trigger = command("trigger", "write SQL that notifies of every change to a table", TRIGGER, dsn=False)
    trigger.add_argument("table", metavar="TABLE", type=_table, help="its name as in SQL, perhaps with its schema")
    trigger.add_argument("-c", "--channel", metavar="CHANNEL", type=_channel, help="else the table's name")

    about = "store notifications for processes that are away, and inspect them"
    text = f"{about.capitalize()}."
    group = _make(subparsers.add_parser, "journal", help=about, description=text, epilog=journal.JOURNAL)
    among = group.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    journal.add_commands(lambda name, run, text: command(name, text, run=run, among=among), _channel)

    check = command("doctor", "check a database for all that keeps LISTEN from working", DOCTOR)
    check.add_argument("--json", action="store_true", help="one JSON object a check")

    command("demo", "show the main job on a throw-away PostgreSQL, or on --dsn", DEMO)

    complete = command("completion", "write a completion script for a shell", COMPLETION, dsn=False)
    complete.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" or ".join(SHELLS))
    return parser


def _make(make: Callable[..., argparse.ArgumentParser], *args: str, **options: object) -> argparse.ArgumentParser:
    return make(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)


def _dsn(text: str) -> str:
    with _as_usage():
        return advice.check_dsn(text)


def _channel(text: str) -> str:
    with _as_usage():
        return check_channel(text)


def _table(text: str) -> str:
    with _as_usage():
        parse_table(text)
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}")
    return int(text)


def _payload(text: str) -> str:
    with _as_usage():
        size = len(text.encode())
    if size > MAX_PAYLOAD_BYTES:
        raise argparse.ArgumentTypeError(f"at most {MAX_PAYLOAD_BYTES} bytes, not {size}: send a key instead")
    return text


class _as_usage(contextlib.AbstractContextManager[None]):
    """Turns a ValueError of the block into bad usage, with its own text."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnicodeError):
            raise argparse.ArgumentTypeError("not UTF-8")
        if isinstance(error, ValueError):
            raise argparse.ArgumentTypeError(str(error))
