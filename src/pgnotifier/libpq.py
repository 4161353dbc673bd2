"""The advice if psycopg finds no libpq, which it needs and `pip install psycopg` does not bring. Pure."""

from __future__ import annotations

import sys
from pathlib import PurePath

ADVICE = (
    "psycopg finds no libpq that it can use ({}): pip install 'pgnotifier[binary]', or install PostgreSQL's client "
    "library (Debian and Ubuntu: apt install libpq5; macOS: brew install libpq)"
)


def missing(error: ImportError) -> BaseException:
    """Return the exception to raise for `error`, met on importing psycopg; `error` itself if libpq is not missing.

    On the command line it is a `SystemExit`, which prints one line. The check is here, because the command line
    imports the package before any code of its own can run.
    """
    text = str(error)
    if "no pq wrapper" not in text:
        return error
    advice = ADVICE.format(text.strip().rsplit(": ", 1)[-1])  # the last of what psycopg has tried
    script = sys.argv[0] if sys.argv else ""  # "-m" while `python -m` looks for what to run
    if PurePath(script).stem == "pgnotifier" or (script == "-m" and "pgnotifier" in sys.orig_argv):
        return SystemExit(f"pgnotifier: {advice}")
    return ImportError(advice)
