"""`doctor`'s checks of the server and its settings."""

from __future__ import annotations

import contextlib
import ipaddress

import psycopg

from .. import advice
from ..views import Check
from .asking import Conn, ask
from .services import Service
from .sessions import listening_pids

CROWD = 50  # listening sessions, from which on it costs to wake all of them for every NOTIFY
HEARTBEAT = 10.0  # seconds: the default of Notifier

# The first minor versions of each major version in which LISTEN can't fail with 58P01 any more.
MENDED = {14: 21, 15: 16, 16: 12, 17: 8, 18: 2}


def database(conn: Conn) -> Check:
    """Show which database and server this is."""
    ((name, user),) = ask(conn, "SELECT current_database(), current_user")
    info = conn.info
    where = info.host if info.host.startswith("/") else f"{info.host}:{info.port}"
    return Check(
        "database",
        "ok",
        f"{name}, as user {user}, on {where}; a notification reaches listeners of the same database only",
        facts={"database": name, "user": user, "host": info.host, "port": info.port},
    )


def service(found: Service | None) -> Check:
    """Name a service that keeps LISTEN from working, with what to do."""
    if found is None:
        return Check("service", "ok", "none that is known to keep LISTEN from working", facts={"service": None})
    return Check(
        "service", "warning", f"this is {found.name}, which {found.trouble}", found.remedy, {"service": found.name}
    )


def primary(conn: Conn) -> Check:
    """Check that the server is no standby."""
    ((standby,),) = ask(conn, "SELECT pg_is_in_recovery()")
    if standby:
        return Check("primary", "failed", "a standby: it refuses LISTEN and NOTIFY", advice.STANDBY)
    return Check("primary", "ok", "a primary")


def timeouts(conn: Conn) -> Check:
    """Compare `idle_session_timeout` of this role and database with the heartbeat of a Notifier."""
    found = ask(conn, "SELECT setting::bigint FROM pg_settings WHERE name = 'idle_session_timeout'")
    seconds = found[0][0] / 1000 if found else 0.0  # before PostgreSQL 14 there is none
    facts = {"idle_session_timeout": seconds}
    if not seconds:
        return Check("timeouts", "ok", "the server ends no idle session", facts=facts)
    detail = f"idle_session_timeout is {seconds:g} s, the default heartbeat of a Notifier {HEARTBEAT:g} s"
    if seconds > HEARTBEAT:
        return Check("timeouts", "ok", detail, facts=facts)
    detail = f"the server ends a listening session before it shows that it is alive: {detail}"
    remedy = f"Notifier(heartbeat={seconds / 2:g}), or ALTER ROLE ... SET idle_session_timeout = 0"
    return Check("timeouts", "warning", detail, remedy, facts)


def version(conn: Conn) -> Check:
    """Warn of the defect that makes LISTEN fail with 58P01, and of many listeners before PostgreSQL 19."""
    number = conn.info.server_version
    ((name,),) = ask(conn, "SELECT current_setting('server_version')")
    facts = {"server_version": number}
    major, minor = divmod(number, 10000)
    if major == 13 or minor < MENDED.get(major, 0):
        detail = f"PostgreSQL {name}; after a truncation of the commit log LISTEN fails with 58P01 until it is cured"
        better = f"{major if major in MENDED else 14}.{MENDED.get(major, MENDED[14])}"
        remedy = f"update to {better}; a Notifier cures it by itself, SELECT pg_notification_queue_usage() for others"
        return Check("version", "warning", detail, remedy, facts)
    if major >= 19:
        return Check("version", "ok", f"PostgreSQL {name}", facts=facts)
    count = len(listening_pids(conn))
    detail = f"PostgreSQL {name}; before 19 every NOTIFY wakes every listening session of the database"
    if count < CROWD:
        return Check("version", "ok", detail, facts=facts)
    remedy = "keep listening sessions few: one Notifier a process, or PostgreSQL 19"
    return Check("version", "warning", f"{detail}, and there are {count}", remedy, facts)


def tls(conn: Conn) -> Check:
    """Check that a connection over a network is encrypted."""
    if conn.pgconn.ssl_in_use:
        return Check("tls", "ok", "in use", facts={"in_use": True})
    if _local(conn.info):
        return Check("tls", "ok", "not in use; the server is on this machine", facts={"in_use": False})
    remedy = "payloads and perhaps passwords can be read on the way: sslmode=require, or better verify-full"
    return Check("tls", "warning", "not in use", remedy, {"in_use": False})


def _local(info: psycopg.ConnectionInfo) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(info.hostaddr).is_loopback
    return info.host.startswith(("/", "@")) or info.host == "localhost"
