"""What is heard: connections to the server, and what belongs to one start."""

from .aioloop import as_async, new_loop
from .backoff import delay, next_attempt
from .connect import Server, connect, server_of
from .lifetime import LISTENING, RECONNECTING, STOPPED, STOPPING, Lifetime, Phase
from .sender import Sender, payload_bytes
from .session import Session, lasts
from .waiting import Abandoned, CancelToken

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
    "lasts",
    "new_loop",
    "next_attempt",
    "payload_bytes",
    "server_of",
]
