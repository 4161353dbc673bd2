"""Subscribe callbacks to PostgreSQL NOTIFY channels, from a thread of the library's own."""

from .errors import (
    CannotListen,
    InvalidChannel,
    NotifierError,
    PayloadTooLong,
    StreamClosed,
    UnknownChannel,
    UnknownSubscriber,
)

# The errors come first: their module says what to install if psycopg finds no libpq.
# isort: split
from .aio import AsyncNotifier
from .aiostreams import AsyncStream
from .connection import as_async
from .delivery import Stream
from .events import Listening, Notification
from .gap import Gap
from .health import Health
from .maps import assoc_in, dissoc_in, filterkv
from .notifier import Notifier
from .payload import decode, encode

__all__ = [
    "AsyncNotifier",
    "AsyncStream",
    "CannotListen",
    "Gap",
    "Health",
    "InvalidChannel",
    "Listening",
    "Notification",
    "Notifier",
    "NotifierError",
    "PayloadTooLong",
    "Stream",
    "StreamClosed",
    "UnknownChannel",
    "UnknownSubscriber",
    "as_async",
    "assoc_in",
    "decode",
    "dissoc_in",
    "encode",
    "filterkv",
]


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
