"""Who is called: mailboxes, what each subscription has heard, and the threads and event loops that make calls."""

from .coverage import ListenCall
from .dispatcher import Dispatcher
from .workers import Workers

__all__ = ["Dispatcher", "ListenCall", "Workers"]
