"""`doctor`'s check of journals: consumers that are away, and restored databases (guarantee 18)."""

from __future__ import annotations

from psycopg.sql import Identifier

from ..views import Check
from .asking import Conn, ask

SCHEMAS = """
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = 'consumer_channel' AND c.relkind = 'r' AND has_table_privilege(c.oid, 'select')
        AND EXISTS (SELECT FROM pg_class m WHERE m.relnamespace = n.oid AND m.relname = 'meta')
    ORDER BY 1"""

HOME = "SELECT m.system = c.system_identifier FROM {s}.meta m, pg_control_system() c"

AWAY = """
    SELECT c.name, count(o.id), coalesce(extract(epoch FROM clock_timestamp() - min(o.at)), 0)::float8
    FROM {s}.consumer c LEFT JOIN {s}.lease l ON l.consumer = c.name LEFT JOIN {s}.owed o ON o.name = c.name
    WHERE l.expires IS NULL OR l.expires < clock_timestamp() GROUP BY c.name ORDER BY c.name"""

REMEDY = (
    "start its program, or forget it with `pgnotifier journal remove NAME`: it keeps entries from being deleted; "
    "`pgnotifier journal status` shows more"
)


def journal(conn: Conn) -> Check:
    """Check that every consumer of every readable journal is active, or has had everything."""
    schemas = [name for (name,) in ask(conn, SCHEMAS)]
    if not schemas:
        return Check("journal", "ok", "there is none that this role can read")
    away: list[tuple[str, int, float]] = []
    for schema in schemas:
        quoted = Identifier(schema).as_string(None)
        ((is_home,),) = ask(conn, HOME.replace("{s}", quoted))
        if not is_home:
            text = f"schema {schema!r} comes from another cluster; consumers are told of a gap when they start"
            return Check("journal", "warning", text, "start its consumers", {"schemas": schemas})
        away += [row for row in ask(conn, AWAY.replace("{s}", quoted)) if row[1]]
    facts = {"schemas": schemas, "away": {name: {"entries": n, "seconds": s} for name, n, s in away}}
    if away:
        names = ", ".join(f"{name!r} ({n:,} entries behind, {s:,.0f} s)" for name, n, s in away)
        return Check("journal", "warning", f"not active: {names}", REMEDY, facts)
    return Check("journal", "ok", f"in {', '.join(map(repr, schemas))}; no consumer is away", None, facts)
