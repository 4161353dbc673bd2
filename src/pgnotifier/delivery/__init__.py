"""Delivery: mailboxes, coverage of subscriptions, streams, and the threads and event loops that make calls."""

from .calls import Calls
from .coverage import ListenCall
from .dispatcher import Dispatcher
from .streams import Puller, Stream
from .workers import Workers

__all__ = ["Calls", "Dispatcher", "ListenCall", "Puller", "Stream", "Workers"]
