"""The poolers and services that keep LISTEN from working, by their names. Only `pooler_behind` connects."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass

import psycopg

from .asking import deadline, open_session


@dataclass(frozen=True)
class Service:
    """A service. `trouble` completes the sentence "this is NAME, which ..."; `remedy` says what to do."""

    name: str
    trouble: str
    remedy: str


NEON = Service(
    "Neon's pooler",
    "pools by transaction: a LISTEN is lost when its transaction ends",
    "connect without the pooler: take '-pooler' out of the host's name",
)
SUPABASE = Service(
    "Supabase's pooler on port 6543",
    "pools by transaction: a LISTEN is lost when its transaction ends",
    "use port 5432, which pools by session, or the direct host db.<project>.supabase.co",
)
RDS_PROXY = Service(
    "RDS Proxy",
    'keeps a server connection for every session that listens ("pinning"), so that it saves none',
    "connect the listener to the endpoint of the instance or cluster itself, not to that of the proxy",
)
DSQL = Service("Aurora DSQL", "has no LISTEN and NOTIFY", "use Aurora PostgreSQL or RDS for PostgreSQL")
COCKROACH = Service("CockroachDB", "has no LISTEN and NOTIFY", "use its CREATE CHANGEFEED, or PostgreSQL")
YUGABYTE = Service(
    "YugabyteDB",
    "has LISTEN and NOTIFY from 2025.2.3 on, and only with a flag",
    "set the flag ysql_yb_enable_listen_notify=true on masters and tablet servers, or use PostgreSQL",
)
PGBOUNCER = Service(
    "pgbouncer",
    "loses LISTEN unless it pools by session",
    "set pool_mode=session for this database in pgbouncer.ini, or connect to PostgreSQL itself (often port 5432)",
)
PGDOG = Service(
    "PgDog",
    "answers LISTEN before it listens, and loses LISTEN without pub_sub_channel_size unless it pools by session",
    'set pooler_mode = "session" for this user in users.toml, or connect to PostgreSQL itself (often port 5432)',
)
ODYSSEY = Service(
    "Odyssey",
    "loses LISTEN unless it pools by session",
    'set pool "session" for this user in odyssey.conf, or connect to PostgreSQL itself (often port 5432)',
)

# Found in "host:port" or in what version() returns.
_BY_NAME = [
    (r"-pooler\..*\bneon\.(tech|build):", NEON),
    (r"\.supabase\.(com|co):6543$", SUPABASE),
    (r"\.proxy-\w+\.[\w-]+\.rds\.amazonaws\.com(\.cn)?:", RDS_PROXY),
    (r"\.dsql\.[\w-]+\.on\.aws:", DSQL),
    (r"\.cockroachlabs\.cloud:|^CockroachDB\b", COCKROACH),
    (r"\.yugabyte\.cloud:|^PostgreSQL \S+-YB-", YUGABYTE),
]

# The database of a pooler's own console, what SHOW VERSION returns there, and how the pooler's own errors read.
_CONSOLES = [
    ("pgbouncer", r"^PgBouncer", r"FATAL: +(not allowed|no such database: |bouncer config error)", PGBOUNCER),
    ("admin", r"^PgDog", r"is wrong, or the database does not exist", PGDOG),
    ("console", r"^\d", r"odyssey: ", ODYSSEY),  # its version is a bare number
]


def service_named(host: str, port: int, version: str) -> Service | None:
    """Return the service that this host's name and port, or the text of version(), belong to."""
    texts = (f"{host.lower()}:{port}", version)
    return next((service for pattern, service in _BY_NAME if any(re.search(pattern, text) for text in texts)), None)


def pooler_behind(dsn: str) -> Service | None:
    """Ask the pooler at `dsn` which one it is. Call this only if there is a pooler."""
    for database, version, _, service in _CONSOLES:
        try:
            with closing(open_session(dsn, dbname=database)) as conn, deadline(conn):
                found = conn.pgconn.exec_(b"SHOW VERSION")  # no pooler's console knows the extended protocol
                if found.ntuples and re.search(version, (found.get_value(0, 0) or b"").decode(errors="replace")):
                    return service
        except psycopg.Error as raised:
            text = str(raised)
            if named := next((known for *_, pattern, known in _CONSOLES if re.search(pattern, text)), None):
                return named
    return None
