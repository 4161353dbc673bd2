"""For tests of code that uses pgnotifier: a notifier whose server is in memory, and that server's controls.

Everything but the server is the library itself: the registry, the threads, the order of calls, gaps and errors.
It imports no test framework; the fixtures of pytest are in a separate module.
"""

from .aio import AsyncMemoryNotifier
from .backend import Sent
from .notifier import MemoryNotifier
from .server import MemoryServer, Transaction

__all__ = ["AsyncMemoryNotifier", "MemoryNotifier", "MemoryServer", "Sent", "Transaction"]
