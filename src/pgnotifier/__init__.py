"""Subscribe callbacks to PostgreSQL NOTIFY channels, from a thread of the library's own.

PYTEST_DONT_REWRITE: it asserts nothing, and pytest would warn where it was imported before pytest began.
"""

from .errors import (
    CannotListen,
    InvalidChannel,
    NotifierError,
    PayloadTooLong,
    UnknownChannel,
    UnknownSubscriber,
)
from .gap import Gap
from .listener import as_async
from .maps import assoc_in, dissoc_in, filterkv
from .notifier import Notifier
from .payload import decode, encode

__all__ = [
    "CannotListen",
    "Gap",
    "InvalidChannel",
    "Notifier",
    "NotifierError",
    "PayloadTooLong",
    "UnknownChannel",
    "UnknownSubscriber",
    "as_async",
    "assoc_in",
    "decode",
    "dissoc_in",
    "encode",
    "filterkv",
]
