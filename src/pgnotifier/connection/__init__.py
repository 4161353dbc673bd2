"""What is heard: connections to the server, and the threads that listen and send."""

from .aioloop import as_async
from .backoff import delay
from .connect import Server, connect
from .listener import Lifetime, Listener
from .sender import Sender, payload_bytes
from .session import REFUSALS, Session
from .waiting import Abandoned, CancelToken

__all__ = [
    "REFUSALS",
    "Abandoned",
    "CancelToken",
    "Lifetime",
    "Listener",
    "Sender",
    "Server",
    "Session",
    "as_async",
    "connect",
    "delay",
    "payload_bytes",
]
