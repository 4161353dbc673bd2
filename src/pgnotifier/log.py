"""The logger `pgnotifier`: INFO for a change of phase, WARNING for a loss, ERROR for a failing callback.

A payload is logged where it could not be decoded, and nowhere else; a password never.
"""

from __future__ import annotations

import logging

_logger = logging.getLogger("pgnotifier")
_logger.addHandler(logging.NullHandler())

INFO, WARNING, ERROR, CRITICAL = logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL


def log(level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log with the traceback of `error`. A handler or a `repr` that raises ends none of our threads."""
    try:
        _logger.log(level, text, *values, exc_info=error, stacklevel=2)
    except Exception:
        pass


def describe(error: BaseException) -> str:
    """The error's type and text, in one line."""
    try:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    except Exception:
        return f"{type(error).__name__}, which cannot be shown"
