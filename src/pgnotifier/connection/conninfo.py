"""What is wrong with a connection string, in words that show no piece of a password (guarantee 2). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

ESCAPE = (
    "in a URI, write special characters of a password as %40 for @, %2F for /, %3A for :, %3F for ?, %23 for #, "
    "%25 for % and %20 for a space"
)
MISREAD = f"its host, port or database can't be right; {ESCAPE}"

_QUOTED = re.compile('["«»“”„].*["«»“”„]', re.DOTALL)  # libpq's messages may be translated


def misread(text: str, params: Mapping[str, Any]) -> bool:
    """Return True if libpq has taken a piece of a password in `text` for a host, a port or a database.

    `params` is how libpq reads `text`. An unescaped `@` or `/` in a password has that effect.
    """
    hosts, port = str(params.get("host") or "").split(","), str(params.get("port") or "")
    if any("@" in host[1:] for host in hosts):  # an abstract Unix socket begins with one
        return True
    if not re.fullmatch(r"[0-9,\s]*", port):
        return True
    scheme, _, rest = text.partition("://")
    if not rest or "=" in scheme:
        return False
    authority, _, path = rest.partition("?")[0].partition("/")
    return authority.count("@") > 1 or "@" in path


def unreadable(text: str, error: Exception) -> str:
    """Return why libpq cannot read `text`, without the part that it quotes, which may be a piece of a password."""
    reason = _QUOTED.sub('"..."', str(error).strip().replace('"="', "=", 1))
    wanted = "wanted is a URI (postgresql://user@host/database) or pairs (host=... dbname=...)"
    return f"{reason}; {wanted}; {ESCAPE}" if "://" in text else f"{reason}; {wanted}"
