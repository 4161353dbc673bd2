"""Pure: from payload texts to values, and back (guarantee 7). No I/O, and one lock.

JSON is tried first, because it is many times faster than `ast.literal_eval`. If a text is both, the values differ
only in two escapes, for which JSON is right.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import re
import warnings
from _thread import allocate_lock
from typing import Any, NoReturn

from .errors import shown

MAX_DEPTH = 64  # containers within containers; Python's own parser gives up not far above (memory, not syntax)

_JSON_SPACE = " \t\n\r"
# Only these can make Python's tokenizer warn: an unknown escape, or a number that runs into a keyword.
_may_warn = re.compile(r"\\|[0-9a-fA-F_.jJlL](?=and|else|for|if|in|is|not|or)").search
_warnings_lock = allocate_lock()  # catch_warnings replaces state of the whole process
_quiet: warnings.catch_warnings[None] | None = None  # the replacement under way, for `_after_fork`


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


_scan_json = json.JSONDecoder(parse_constant=_refuse_constant).scan_once  # type: ignore[attr-defined]
_dump_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def decode(text: str) -> Any:
    """Return the value that `text` spells: a Python literal, else a JSON document, else the text itself.

    Never raises, prints or warns. `NaN` and `Infinity` are neither, and stay text. Runs on a worker thread.
    """
    try:
        value, end = _scan_json(text, 0)
        if end == len(text):
            return value
    except (ValueError, StopIteration, RecursionError, MemoryError):
        pass
    return _decode_slowly(text)


def _decode_slowly(text: str) -> Any:
    stripped = text.strip(_JSON_SPACE)
    try:
        if stripped != text:
            try:
                value, end = _scan_json(stripped, 0)
                if end == len(stripped):
                    return value
            except (ValueError, StopIteration):
                pass
        if _may_warn(text) is None:
            return _literal_eval(text)
        return _literal_eval_quietly(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, SystemError):
        return text


def _literal_eval_quietly(text: str) -> Any:
    global _quiet
    with _warnings_lock:
        _quiet = warnings.catch_warnings()
        try:
            with _quiet:
                warnings.simplefilter("ignore")
                return _literal_eval(text)
        finally:
            _quiet = None


def _after_fork() -> None:
    """Restore lock and warning filters in a forked child, which does not have the thread that held them."""
    global _quiet, _warnings_lock
    _warnings_lock = allocate_lock()
    quiet, _quiet = _quiet, None
    if quiet is not None:
        with contextlib.suppress(RuntimeError, AttributeError):  # it was not entered yet
            quiet.__exit__(None, None, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _literal_eval(text: str) -> Any:
    for _ in range(50):  # after one such error the next is likely: one in seven while eight threads parse
        try:
            return ast.literal_eval(text)
        except SystemError:  # CPython 3.11 and 3.12: a garbage collection in mid-parse upsets the parser's own count
            continue
    return ast.literal_eval(text)


def encode(value: object) -> str:
    """Return text for which `decode(encode(value)) == value`, of the same type.

    The text is JSON if JSON keeps the value, else a Python literal. Values consist of None, bool, int, float,
    complex, str, bytes, tuple, list, dict and set. Raises `TypeError` for any other type (also for subclasses,
    which would come back as their base), `ValueError` for a value that can't come back: a NaN, a cycle, an int
    of more digits than Python reads, nesting over 64 levels.
    """
    if _check(value, 0, set()):
        return _dump_json(value)
    return _literal(value)


def _check(value: object, depth: int, above: set[int]) -> bool:
    """Return True if JSON keeps `value`. Raises `TypeError` and `ValueError` as `encode`."""
    kind = type(value)
    if value is None or kind is bool:
        return True
    if kind is int:
        str(value)  # raises ValueError past sys.get_int_max_str_digits()
        return True
    if kind is float or kind is complex:
        if value != value:
            raise ValueError(f"cannot encode {value!r}: a NaN does not equal itself")
        return kind is float and math.isfinite(value)  # type: ignore[arg-type]
    if kind is str:
        return not any("\ud800" <= c <= "\udfff" for c in value)  # type: ignore[attr-defined]
    if kind is bytes:
        return False
    if kind not in (tuple, list, dict, set):
        raise TypeError(f"cannot encode a {kind.__module__}.{kind.__qualname__}: {shown(value)}")
    if id(value) in above:
        raise ValueError(f"cannot encode a {kind.__name__} that contains itself")
    if depth >= MAX_DEPTH:
        raise ValueError(f"cannot encode more than {MAX_DEPTH} levels of nesting")
    above.add(id(value))
    keeps = kind is list or kind is dict
    if kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]
            key_keeps = _check(key, depth + 1, above)
            keeps = _check(item, depth + 1, above) and key_keeps and type(key) is str and keeps
    else:
        for item in value:  # type: ignore[attr-defined]
            keeps = _check(item, depth + 1, above) and keeps
    above.discard(id(value))
    return keeps


def _literal(value: Any) -> str:
    kind = type(value)
    if kind is float:
        return repr(value) if math.isfinite(value) else ("1e999" if value > 0 else "-1e999")
    if kind is complex:
        imag = _literal(abs(value.imag))
        return f"{_literal(value.real)}{'-' if math.copysign(1, value.imag) < 0 else '+'}{imag}j"
    if kind is str:
        return _quote(value)
    if kind is tuple:
        return f"({''.join(_literal(v) + ',' for v in value)})"
    if kind is list:
        return f"[{','.join(map(_literal, value))}]"
    if kind is dict:
        return f"{{{','.join(f'{_literal(k)}:{_literal(v)}' for k, v in value.items())}}}"
    if kind is set:
        return f"{{{','.join(map(_literal, value))}}}" if value else "set()"
    return repr(value)


def _quote(text: str) -> str:
    # Single quotes always: in double quotes decode would read JSON, which joins two adjacent surrogates.
    inner = "".join(c if c.isprintable() and c not in "\\'" else c.encode("unicode_escape").decode() for c in text)
    return "'" + inner.replace("'", "\\'") + "'"
