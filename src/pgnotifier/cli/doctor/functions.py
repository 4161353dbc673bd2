"""`doctor`'s check of functions whose notifications may be too long for PostgreSQL: 8,000 bytes or more."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..views import Check
from .asking import Conn, ask

SHOWN = 5  # names of functions in the text; the facts have all

# Functions of extensions and of the server itself are not the user's to mend.
_CALLING = """SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc p
WHERE prokind IN ('f', 'p') AND (prosrc ~* 'pg_notify' OR prosrc = '')
AND prolang NOT IN (SELECT oid FROM pg_language WHERE lanname IN ('internal', 'c'))
AND pronamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = p.oid AND deptype = 'e')
ORDER BY 1"""

_COMMENT = re.compile(r"('(?:[^']|'')*')|--[^\n]*|/\*.*?\*/", re.DOTALL)
_GUARD = re.compile(r"\b(?:octet_length|left|substr|substring)\s*\(", re.IGNORECASE)
_CALL = re.compile(r"\bpg_notify\s*\(", re.IGNORECASE)
_PIECE = re.compile(r"'(?:[^']|'')*'|[(),]|[^'(),]+")

# Words that make no long text: keys, names of the trigger and its table, numbers of the session, plumbing.
_SHORT = re.compile(
    r"(?:\w+\.)*(?:\w+_)?(?:id|uuid)|tg_(?!argv)\w+|(?:pg_catalog\.)?(?:now|clock_timestamp|txid_current|count"
    r"|pg_backend_pid|pg_current_xact_id|jsonb?_build_(?:object|array)|format|concat|concat_ws|cast|as|text|varchar"
    r"|jsonb?|null|true|false|case|when|then|else|end)",
    re.IGNORECASE,
)
_NUMBERS = re.compile(
    r"\b(\w+)\s+(?:constant\s+)?(?:bigint|integer|int|smallint|uuid|boolean|timestamptz|date)\b", re.IGNORECASE
)


def functions(conn: Conn) -> Check:
    """Look for functions that call `pg_notify` with a payload whose length nothing bounds."""
    found = [name for name, source in ask(conn, _CALLING) if unguarded(source)]
    facts = {"functions": found}
    if not found:
        return Check("functions", "ok", "none calls pg_notify with a payload of any length", facts=facts)
    names = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
    detail = f"{names}: pg_notify without a guard; a payload of 8,000 bytes or more makes the statement fail"
    remedy = (
        "send only the key if octet_length(payload) > 7999 (length() counts characters); "
        "`pgnotifier trigger TABLE` writes such a trigger"
    )
    return Check("functions", "warning", detail, remedy, facts)


def unguarded(source: str) -> bool:
    """Return True if a function notifies, and nothing in its definition seems to bound the payload. Pure."""
    source = _COMMENT.sub(lambda found: found[1] or " ", source)
    if _GUARD.search(source):
        return False
    numbers = {name.lower() for name in _NUMBERS.findall(source)}
    for payload in _payloads(source):
        words = re.findall(r"[A-Za-z_$][\w.$]*", re.sub(r"'(?:[^']|'')*'", "''", payload))
        if any(not _SHORT.fullmatch(word) and word.lower() not in numbers for word in words):
            return True
    return False


def _payloads(source: str) -> Iterator[str]:
    """Yield the second argument of each call of `pg_notify`."""
    for call in _CALL.finditer(source):
        depth, argument, payload = 0, 0, ""
        for piece in _PIECE.findall(source[call.end() :]):
            if piece == ")" and depth == 0:
                break
            if piece == "," and depth == 0:
                argument += 1
                continue
            depth += (piece == "(") - (piece == ")")
            if argument == 1:
                payload += piece
        yield payload
