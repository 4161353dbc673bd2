"""The readers that are compared, behind one face. Each imports what it reads with when it is used.

`Reader(dsn, channel, fn)` listens when it has been made; `fn(payload)` is called with the decoded payload.
`add(channel)` listens to one more channel and returns how long that took, where the reader can. `close()` ends it.
"""

from __future__ import annotations

from typing import Any

from .loops import Async, Asyncpg, AsyncpgFromThread, AsyncpgListen, OurAsyncStream
from .threaded import Bare, Old, Ours, OurStream, Raw, WithMsgspec, WithOrjson

READERS: dict[str, type[Any]] = {
    "ours": Ours,
    "ours, stream": OurStream,
    "ours, async stream": OurAsyncStream,
    "psycopg": Bare,
    "psycopg, not decoded": Raw,
    "psycopg async": Async,
    "asyncpg": Asyncpg,
    "asyncpg-listen": AsyncpgListen,
    "0.0.10": Old,
}
EVERY = READERS | {  # and those that take part in one experiment
    "asyncpg from a thread": AsyncpgFromThread,
    "ours, orjson": WithOrjson,
    "ours, msgspec": WithMsgspec,
}
