"""`doctor`'s checks of other sessions: those that fill the queue, wait to notify, listen, or use up connections."""

from __future__ import annotations

import contextlib
import re
from operator import itemgetter
from time import monotonic
from typing import Any

import psycopg

from ..views import Check
from .asking import Conn, ask

WARNING_TIME = 5.5  # seconds for the server to warn that the queue fills, which it does once in five
LOOKS = 3  # at the sessions that wait to notify; only one that waits at each of them counts
BETWEEN_LOOKS = 0.3  # seconds
FEW_CONNECTIONS = 5  # a Notifier takes one connection, and its `notify` a second

LISTENS = """(query ~* '^\\s*(un)?listen\\M'
OR application_name = 'pgnotifier' AND query !~ '^SELECT (pg_catalog[.])?pg_notify')"""

# The sessions that have had a transaction open, or have not read, for the longest time; listening ones first.
_HOLDERS = f"""SELECT pid, usename, datname, application_name, state, COALESCE(xact_start, state_change) AS since,
COALESCE({LISTENS} OR wait_event = 'ClientWrite', false) AS listens
FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
AND (xact_start IS NOT NULL OR wait_event = 'ClientWrite')
ORDER BY listens DESC, since"""

_QUEUE = """SELECT pg_notification_queue_usage(),
(SELECT setting::bigint FROM pg_settings WHERE name = 'max_notify_queue_pages')"""


def queue(conn: Conn) -> Check:
    """Measure how full the queue of notifications is, and name the session that holds it back."""
    ((usage, pages),) = ask(conn, _QUEUE)
    facts: dict[str, Any] = {"usage": usage, "max_notify_queue_pages": pages}
    detail = f"{usage:.2%} of the notification queue is used"
    if usage < 0.1:
        return Check("queue", "ok", detail, facts=facts)
    detail += "; when it is full, every NOTIFY fails"
    pid = _named_by_the_server(conn) if usage >= 0.5 else None
    holders = ask(conn, _HOLDERS)
    holder = next((row for row in holders if row[0] == pid), holders[0] if holders and pid is None else None)
    if holder is not None:
        pid, user, database, application, state, since, listens = holder
        sure = "holds it back" if listens or usage >= 0.5 else "may hold it back: its transaction is the oldest"
        who = ", ".join(str(part) for part in (user, database, application) if part)
        detail += f"; session {pid} ({who}) {sure}; {state or 'not reading'} since {since:%Y-%m-%d %H:%M:%S%z}"
    elif pid is not None:
        detail += f"; session {pid} holds it back"
    remedy = "end that session" if pid else "end the session with the oldest xact_start in pg_stat_activity"
    remedy += f": SELECT pg_terminate_backend({pid if pid else 'pid'}); then have that listener commit, and read"
    if not pid:
        remedy += "; members of pg_read_all_stats see all sessions"
    if pages is not None:
        remedy += f"; a larger max_notify_queue_pages (now {pages}) gives it more time, after a restart of the server"
    facts |= {"pid": pid} if pid else {}
    return Check("queue", "warning" if usage < 0.5 else "failed", detail, remedy, facts)


def _named_by_the_server(conn: Conn) -> int | None:
    """Return the session that the server itself names, in a warning that it gives once in five seconds."""
    found: list[int] = []

    def heard(notice: psycopg.errors.Diagnostic) -> None:
        found.extend(map(int, re.findall(r"PID\D*(\d+)", notice.message_detail or "")))

    conn.add_notice_handler(heard)
    end = monotonic() + WARNING_TIME
    while not found and monotonic() < end:
        with contextlib.suppress(psycopg.errors.ProgramLimitExceeded):  # it is full, and the warning comes first
            conn.execute("SELECT pg_catalog.pg_notify('pgnotifier_doctor', '')")
        list(conn.notifies(timeout=0.2))
    conn.remove_notice_handler(heard)
    return found[0] if found else None


# The lock of the whole cluster that a transaction with notifications takes when it commits.
_COMMITTING = """SELECT pid, granted, application_name, wait_event
FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
WHERE locktype = 'object' AND pg_locks.database = 0 AND classid = 'pg_database'::regclass AND objid = 0
AND mode = 'AccessExclusiveLock' AND application_name IS DISTINCT FROM 'pgnotifier doctor'"""


def commits(conn: Conn) -> Check:
    """Look for sessions that wait for the lock of the whole cluster that NOTIFY takes at commit."""
    seen: list[tuple[Any, ...]] = []
    waiting: set[int] = set()
    for look in range(LOOKS):
        if look:
            list(conn.notifies(timeout=BETWEEN_LOOKS))  # nothing comes: this session listens to nothing
        seen = ask(conn, _COMMITTING)
        still = {pid for pid, granted, *_ in seen if not granted}
        waiting = still if look == 0 else waiting & still
        if not waiting:
            return Check("commits", "ok", "no session waits for the lock that NOTIFY takes at commit")
    facts: dict[str, Any] = {"waiting": sorted(waiting)}
    detail = f"{len(waiting)} session(s) wait for the lock of the whole cluster that NOTIFY takes at commit"
    remedy = "notify less often: many notifications in one transaction, or one for each statement"
    for pid, granted, application, wait_event in seen:
        if granted:
            facts["pid"] = pid
            detail += f"; session {pid} ({application or 'no name'}) holds it"
            detail += f", and waits for {wait_event}" if wait_event else ""
            if wait_event == "SyncRep":
                remedy = "its commit waits for a synchronous standby: see synchronous_standby_names; " + remedy
    return Check("commits", "warning", detail, remedy, facts)


_SEEN = f"""SELECT pid, state, wait_event FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND {LISTENS}"""


def listening_pids(conn: Conn) -> list[tuple[Any, ...]]:
    """Return pid, state and wait event of the sessions that seem to listen in this database."""
    return sorted(ask(conn, _SEEN), key=itemgetter(0))


def listeners(conn: Conn) -> Check:
    """Look for listening sessions that get nothing, because they are in a transaction or don't read."""
    seen = listening_pids(conn)
    facts = {"pids": [row[0] for row in seen]}
    stuck = [
        f"session {pid} {trouble}"
        for pid, state, wait_event in seen
        for trouble, is_stuck in (
            ("is in an open transaction", (state or "").startswith("idle in transaction")),
            ("does not read its socket", wait_event == "ClientWrite"),
        )
        if is_stuck
    ]
    if stuck:
        remedy = "a listener has to commit, and to read: else it gets nothing and holds the queue back"
        return Check("listeners", "warning", "; ".join(stuck), remedy, facts)
    if seen:
        return Check("listeners", "ok", f"{len(seen)} session(s) that seem to listen", facts=facts)
    detail = (
        "no other listening session was found: right while your application is not running (the server shows only "
        "the last statement of a session, and that of other users to members of pg_read_all_stats only)"
    )
    return Check("listeners", "ok", detail, facts=facts)


_CONNECTIONS = """WITH used AS (
    SELECT datname, usename FROM pg_stat_activity
    WHERE datid IS NOT NULL AND COALESCE(backend_type, 'client backend') = 'client backend'
    AND pid <> pg_backend_pid() AND application_name IS DISTINCT FROM 'pgnotifier doctor')
SELECT
    (SELECT sum(setting::int * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END) FROM pg_settings
        WHERE name = 'max_connections'
        OR name IN ('superuser_reserved_connections', 'reserved_connections') AND NOT r.rolsuper)
        - (SELECT count(*) FROM used),
    CASE WHEN d.datconnlimit >= 0 AND NOT r.rolsuper
        THEN d.datconnlimit - (SELECT count(*) FROM used WHERE datname = d.datname) END,
    CASE WHEN r.rolconnlimit >= 0 AND NOT r.rolsuper
        THEN r.rolconnlimit - (SELECT count(*) FROM used WHERE usename = r.rolname) END
FROM pg_database d, pg_roles r
WHERE d.datname = current_database() AND r.rolname = current_user"""

_LIMITS = (
    "raise max_connections, or close other connections",
    "raise the limit of the database: ALTER DATABASE ... CONNECTION LIMIT",
    "raise the limit of the role: ALTER ROLE ... CONNECTION LIMIT",
)


def connections(conn: Conn) -> Check:
    """Count the connections that are left for this role in this database."""
    (found,) = ask(conn, _CONNECTIONS)
    left, remedy = min((int(left), remedy) for left, remedy in zip(found, _LIMITS, strict=True) if left is not None)
    facts = {"left": left}
    if left >= FEW_CONNECTIONS:
        return Check("connections", "ok", f"{left} are left", facts=facts)
    detail = f"{left} left; a Notifier takes one, its `notify` a second"
    return Check("connections", "warning", detail, remedy, facts)
