"""Connection strings: reading SQLAlchemy's URLs, and naming mistakes. Pure.

No text shows a piece of a password (guarantee 2).
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

ESCAPE = (
    "in a URI, write special characters of a password as %40 for @, %2F for /, %3A for :, %3F for ?, %23 for #, "
    "%25 for % and %20 for a space"
)
MISREAD = f"its host, port or database can't be right; {ESCAPE}"

_QUOTED = re.compile('["«»“”„].*["«»“”„]', re.DOTALL)  # libpq's messages may be translated
_COMPLETE = re.compile(r"postgres(ql)?://([^@]*@[^@]*|[^:@]*(:\d+)?(/[^:@]*)?)")  # the password ends before the query
_URL = re.compile(r"(postgres(?:ql)?)(\+\w+)?://((?:[^@/]*@)?[^?]*)\??(.*)", re.DOTALL)

# The first pattern that is found in an error's text names the cure of a common mistake.
_CURES = [
    (
        r"(localhost|127\.0\.0\.1|::1)[^\n]* refused",
        "in a container, localhost is the container itself: use the name of the database's service, or "
        "host.docker.internal for the machine that runs the container",
    ),
    (r"on socket [^\n]*(no such file| refused)", "for a server on another machine or in a container, give its host"),
    (
        r"(?s)^(?!.*SSL encryption).*(, no encryption|SSL connection is required|connection is insecure)",
        "if the server requires SSL, add sslmode=require",
    ),
    (r"does not support SSL", "use sslmode=prefer, or switch ssl on in the server's configuration"),
]

# Errors that stay however long one waits. If the server translates the text, the library waits until the limit.
_LASTING = re.compile(
    r"authentication failed|no password supplied|does not exist|pg_hba\.conf|not permitted to log in"
    r"|permission denied|support SSL|certificate|invalid|unrecognized",
    re.IGNORECASE,
)


def plain(text: str, is_url: bool = False) -> str:
    """Return a connection string as libpq reads it.

    A SQLAlchemy URL may name a driver (only such ones are recognised, unless `is_url`), and several hosts one by one.
    """
    found = _URL.match(text)
    if found is None or not (found[2] or is_url):
        return text
    scheme, _, rest, query = found.groups()
    options: dict[str, list[str]] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        options.setdefault(key, []).extend(value.split(",") if key in ("host", "port") else [value])
    hosts = [host.partition(":") if host.count(":") == 1 else (host, "", "") for host in options.get("host", ())]
    if any(port for _, _, port in hosts):
        options |= {"host": [host for host, _, _ in hosts], "port": [port for _, _, port in hosts]}
    pairs = {key: ",".join(values) for key, values in options.items()}
    return f"{scheme}://{rest.replace(' ', '%20')}?{urlencode(pairs, quote_via=quote, safe='@')}"


def misread(text: str, params: Mapping[str, Any]) -> bool:
    """Return True if libpq has taken a piece of a password in `text` for a host, a port or a database.

    `params` is how libpq reads `text`. An unescaped `@` or `/` in a password has that effect.
    """
    hosts, port = str(params.get("host") or "").split(","), str(params.get("port") or "")
    if any("@" in host[1:] for host in hosts):  # an abstract Unix socket begins with one
        return True
    if not re.fullmatch(r"[0-9,\s]*", port) or "://" in str(params.get("dbname") or ""):
        return True
    scheme, _, rest = text.partition("://")
    if not rest or "=" in scheme:
        return False
    # As libpq: a user and password go to the first @, whatever stands before it but a slash.
    return "@" in re.sub("^[^@/]*@", "", rest).partition("?")[0]


def unreadable(text: str, error: Exception, known: Container[str]) -> str:
    """Return why libpq cannot read `text`, without the part that it quotes, which may be a piece of a password.

    `known` are libpq's options. Another one in a URI's query is named, if it can't be a piece of a password.
    """
    reason = _QUOTED.sub('"..."', str(error).strip().replace('"="', "=", 1))
    wanted = "wanted is a URI (postgresql://user@host/database) or pairs (host=... dbname=...)"
    if "://" not in text:
        return f"{reason}; {wanted}"
    before, _, query = text.partition("?")
    other = next((key for key, _ in parse_qsl(query) if key not in known), "")
    secret = "@" in query or "password=" in query
    if re.fullmatch(r"\w+", other) and not secret and _COMPLETE.fullmatch(before):
        return f"libpq has no option {other!r}; " + ("write sslmode=require" if other == "ssl" else "leave it out")
    return f"{reason}; {wanted}; {ESCAPE}"


def cured(text: str) -> str:
    """Return an error's text with the cure of the mistake that it shows, if it is a common one."""
    cure = next((cure for pattern, cure in _CURES if re.search(pattern, text, re.IGNORECASE)), None)
    return text if cure is None else f"{text}\nHINT:  {cure}"


def is_lasting(text: str) -> bool:
    """Return True if an attempt to connect that failed with this text would fail again."""
    return _LASTING.search(re.sub("'[^']*'|\"[^\"]*\"", "", text)) is not None  # without names
