"""What to do about an error of PostgreSQL's, in one line and without a password. Pure: texts in, texts out."""

from __future__ import annotations

import os
import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ..connection.conninfo import ESCAPE, MISREAD, misread, plain
from ..errors import NotifierError

POOLER = (
    "connect to PostgreSQL itself, past the pooler (often port 5432), or set the pooler to session mode "
    "(pgbouncer: pool_mode=session)"
)
STANDBY = "connect to the primary: name all hosts, and target_session_attrs=read-write"
QUEUE = "the server's notification queue fills: `pgnotifier doctor` names the session that holds it back"
CLOG = (
    "a defect of PostgreSQL before 18.2, 17.8, 16.12, 15.16 and 14.21: update; until then "
    "SELECT pg_notification_queue_usage() cures it each time"
)
SILENT = "the server is silent, or waits for a lock: the other checks may say more"
WHERE = "check --dsn, or PGHOST, PGPORT, PGUSER, PGDATABASE and PGPASSWORD"

# The first pattern that is found in the error's text names the remedy. libpq's texts follow the locale: WHERE is the
# answer to those that are not recognised.
_REMEDIES = [
    (r"could not access status of transaction", CLOG),
    (r"connection refused|no such file|is the server running", "is the server running? " + WHERE),
    (
        r"resolve|translate host name|name or service",
        "no such host: check the host's name in --dsn or PGHOST; in a URI write %40 for an @ of the password",
    ),
    (r"definition of service", "check --dsn or PGSERVICE, and the service file: ~/.pg_service.conf or PGSERVICEFILE"),
    (r"connect_timeout must be", "write a number of seconds in --dsn or PGCONNECT_TIMEOUT: connect_timeout=10"),
    (r"no equivalent in encoding", "the database's encoding can't hold it: use other characters, or a UTF8 database"),
    (r"password authentication failed", "check the user and the password: --dsn, PGUSER, PGPASSWORD or ~/.pgpass"),
    (r"no password supplied", "give the password in PGPASSWORD, ~/.pgpass or --dsn"),
    (r"database .* does not exist", "name another with --dsn or PGDATABASE, or create it: createdb"),
    (r"role .* does not exist", "name another user with --dsn or PGUSER, or create it: createuser"),
    (r"pg_hba.conf.*no encryption", "connect with sslmode=require, or let this user in: pg_hba.conf on the server"),
    (r"pg_hba.conf", "let this user in from this address: pg_hba.conf on the server"),
    (r"too many notifications", QUEUE),
    (r"permission denied", "GRANT it to this role, or connect as another"),
    (r"no answer within", SILENT),
    (r"startup parameter|statement pooling", POOLER),
    (r"does not support ssl", "connect with sslmode=prefer, or switch ssl on in the server's configuration"),
    (r"certificate", "check sslrootcert and the host's name against the server's certificate"),
    (r"too many (clients|connections)|connection slots", "close other connections, or raise max_connections"),
    (r"starting up|shutting down|recovery mode|not yet accepting", "try again in a moment"),
    (r"read-only|read only|during recovery|in recovery", STANDBY),
    (r"time(d )?out|no route|unreachable", "does a firewall stand between? " + WHERE),
    (r"closed the connection|response to ssl", "is it PostgreSQL that answers on this port? " + WHERE),
]


class CommandFailed(Exception):
    """A command that could not do its work; the text is one line and says what to do."""


def explain(error: BaseException, dsn: str = "") -> tuple[str, str | None]:
    """Return the text of `error` on one line, and what to do about it (None if that is not known).

    The password of `dsn` and of PGPASSWORD is not in the text, even if libpq has put it there.
    """
    text = " ".join(_without_passwords(str(error) or type(error).__name__, dsn).split())
    if isinstance(error, NotifierError):
        return text, None  # these say what to do themselves
    known = (remedy for pattern, remedy in _REMEDIES if re.search(pattern, text, re.IGNORECASE))
    remedy = next(known, WHERE if isinstance(error, psycopg.OperationalError) else None)
    text = text.removeprefix("connection failed: ").removeprefix("connection is bad: ")
    return re.sub(r" Is the server running[^?]*\?", "", text), remedy


def line(error: BaseException, dsn: str = "") -> str:
    """Return the results of `explain` as one line."""
    text, remedy = explain(error, dsn)
    return f"{text} -- {remedy}" if remedy else text


def check_dsn(dsn: str) -> str:
    """Return `dsn` as libpq reads it. Raises ValueError, whose text shows nothing that may be a password."""
    dsn = plain(dsn)
    may_hold_password = "@" in dsn or "pass" in dsn.lower()
    try:
        conf = conninfo_to_dict(dsn)
    except psycopg.Error as error:
        reason = "" if may_hold_password else f" ({' '.join(str(error).split())})"
        raise ValueError(
            f"neither a URI (postgresql://user@host/database) nor pairs (host=... dbname=...){reason}; {ESCAPE}"
        ) from None
    if misread(dsn, conf):
        raise ValueError(MISREAD)
    return dsn


def _without_passwords(text: str, dsn: str) -> str:
    try:
        conf = conninfo_to_dict(dsn)
    except psycopg.Error:
        conf = {}
    for secret in (conf.get("password"), conf.get("sslpassword"), os.environ.get("PGPASSWORD")):
        if secret and len(str(secret)) > 3:  # a shorter one stands in half of all words
            text = text.replace(str(secret), "***")
    return text
