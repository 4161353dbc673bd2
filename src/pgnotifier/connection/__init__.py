"""Connections to the server, and the state from one start until its stop."""

from .aioloop import as_async, new_loop
from .backoff import delay, next_attempt
from .connect import Server, connect, server_of
from .lifetime import LISTENING, RECONNECTING, STOPPED, STOPPING, Lifetime, Phase
from .sender import Sender, payload_bytes, payload_text
from .session import Session, lasts
from .waiting import Abandoned, CancelToken, ended

__all__ = [
    "LISTENING",
    "RECONNECTING",
    "STOPPED",
    "STOPPING",
    "Abandoned",
    "CancelToken",
    "Lifetime",
    "Phase",
    "Sender",
    "Server",
    "Session",
    "as_async",
    "connect",
    "delay",
    "ended",
    "lasts",
    "new_loop",
    "next_attempt",
    "payload_bytes",
    "payload_text",
    "server_of",
]
