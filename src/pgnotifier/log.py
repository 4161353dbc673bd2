"""The logger `pgnotifier`: INFO for a change of phase, WARNING for a loss, ERROR for a failing callback.

A payload is logged only if it could not be decoded, a password never.
"""

from __future__ import annotations

import logging

from .errors import shown

_logger = logging.getLogger("pgnotifier")

INFO, WARNING, ERROR, CRITICAL = logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL


def log(level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log `text % values`, with the traceback of `error` if given. Never raises, even if a handler does."""
    try:
        safe = [value if type(value) in _PLAIN else _Shown(value) for value in values]
        _logger.log(level, text, *safe, exc_info=error, stacklevel=2)
    except Exception:
        pass


def describe(error: BaseException) -> str:
    """Return the error's type and text on one line."""
    try:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    except Exception:
        return f"{type(error).__name__}, which cannot be shown"


_PLAIN = (str, int, float)


class _Shown:
    """A value in a log record: its `repr` is computed when the record is formatted, and never raises."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        return shown(self._value, 1000)
