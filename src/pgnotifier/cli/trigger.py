"""`pgnotifier trigger TABLE`: SQL that makes a table notify of its changes. Pure: names in, a script out.

The script is one statement. The server reads the table's name when the script runs, and the table's key when the
trigger fires. The script is ASCII, so that no client encoding changes a name.
"""

from __future__ import annotations

import re

from ..validation import check_channel

MAX_NAME_BYTES = 63  # PostgreSQL cuts longer names

_PART = r'\s*(?:"((?:[^"\0]|"")+)"|([^\W\d][\w$]*))\s*'
_TABLE = re.compile(rf"(?:{_PART}\.)?{_PART}")

SCRIPT = r"""-- {comment}
-- Written by pgnotifier. It can be run again, also with another channel.
do {tag}
declare
    target constant pg_catalog.regclass := {table}::pg_catalog.regclass;  -- found by the search_path of now
    path constant pg_catalog.text := pg_catalog.current_setting('search_path');
    channel constant pg_catalog.text := {channel};
    home pg_catalog.text;
    name pg_catalog.text;
    function pg_catalog.text;
    kind pg_catalog.text;
begin
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    select nspname, relname into home, name
        from pg_class join pg_namespace on pg_namespace.oid = relnamespace where pg_class.oid = target;
    function := format('%I.%I', home,
        'pgnotifier_' || case when octet_length(name) > 52 then md5(name) else name end);

    execute format($create$
create or replace function %s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as $body$
-- Arguments: the channel, then the schema and the name of the table.
declare
    change jsonb := jsonb_build_object(
        'op', tg_op, 'schema', tg_argv[1], 'table', tg_argv[2],
        'at', to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'));
    line jsonb;
    key jsonb;
    old_key jsonb;
begin
    if tg_op <> 'TRUNCATE' then
        line := case when tg_op = 'DELETE' then to_jsonb(old) else to_jsonb(new) end;
        select jsonb_object_agg(attname, line -> attname::text),
            jsonb_object_agg(attname, to_jsonb(old) -> attname::text) into key, old_key
            from pg_index join pg_attribute on attrelid = indrelid and attnum = any (indkey)
            where indrelid = tg_relid and indisprimary;
        change := change || jsonb_build_object('key', key, 'row', line);
        if tg_op = 'UPDATE' and key <> old_key then
            change := change || jsonb_build_object('old_key', old_key);
        end if;
    end if;
    if octet_length(change::text) > 7999 then  -- PostgreSQL takes no longer payload
        change := change - 'row';
    end if;
    if octet_length(change::text) > 7999 then
        change := change - 'key' - 'old_key';
    end if;
    perform pg_notify(tg_argv[0], change::text);
    return null;
end $body$
$create$, function);

    foreach kind in array array[
        'insert_delete after insert or delete on %s for each row',
        'update after update on %s for each row when (old.* *<> new.*)',  -- bytes: every type can be compared
        'truncate after truncate on %s for each statement'
    ] loop
        execute format(
            'create or replace trigger pgnotifier_' || kind || ' execute function %s(%L, %L, %L)',
            target, function, channel, home, name);
    end loop;
    perform pg_catalog.set_config('search_path', path, true);
end {tag};
"""


def parse_table(text: str) -> list[str]:
    """Return the schema, if it is there, and the name of a table as SQL reads `text`. Raises `ValueError`.

    As in SQL, what is not in double quotes is folded to lower case.
    """
    found = _TABLE.fullmatch(text)
    if found is None:
        raise ValueError(f"not the name of a table: {text!r}; write orders, app.orders or 'app.\"Orders\"'")
    schema_quoted, schema_plain, quoted, plain = found.groups()
    parts = [_read(schema_quoted, schema_plain)] if schema_quoted or schema_plain else []
    return [*parts, _read(quoted, plain)]


def _read(quoted: str | None, plain: str) -> str:
    name = quoted.replace('""', '"') if quoted else re.sub("[A-Z]+", lambda part: part[0].lower(), plain)
    if (size := len(name.encode())) > MAX_NAME_BYTES:
        raise ValueError(f"a name has at most {MAX_NAME_BYTES} bytes, not {size}: {name!r}")
    return name


def trigger_sql(table: str, channel: str | None = None) -> str:
    """Return the script for `table`, a name as SQL reads it. `channel` is the table's name unless given."""
    parts = parse_table(table)
    channel = check_channel(parts[-1] if channel is None else channel)
    name = ".".join('"' + part.replace('"', '""') + '"' for part in parts)
    comment = f"Notify the channel {channel!a} of every change to the table {'.'.join(parts)!a}."
    tag = "$pgnotifier$"
    while tag in name + channel:
        tag = f"{tag[:-1]}_$"
    return SCRIPT.format(comment=comment, tag=tag, table=_literal(name), channel=_literal(channel))


def _literal(text: str) -> str:
    """Return `text` as an SQL string in ASCII, valid with any `standard_conforming_strings`."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return "'" + text.replace("'", "''") + "'"
    return "E'" + "".join(_escaped(letter) for letter in text) + "'"


def _escaped(letter: str) -> str:
    code = ord(letter)
    if letter in "\\'":
        return f"\\{letter}"
    return letter if 32 <= code < 127 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
