"""What is heard: connections to the server, and the threads that listen and send."""

from .aioloop import as_async
from .backoff import delay
from .connect import Server, connect
from .lifetime import LISTENING, RECONNECTING, STOPPED, STOPPING, Lifetime, Phase
from .listener import Listener
from .sender import Sender, payload_bytes
from .session import Session
from .waiting import Abandoned, CancelToken

__all__ = [
    "LISTENING",
    "RECONNECTING",
    "STOPPED",
    "STOPPING",
    "Abandoned",
    "CancelToken",
    "Lifetime",
    "Listener",
    "Phase",
    "Sender",
    "Server",
    "Session",
    "as_async",
    "connect",
    "delay",
    "payload_bytes",
]
