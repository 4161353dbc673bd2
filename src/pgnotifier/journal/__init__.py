"""Notifications that survive: a table of entries, and consumers that get all of them (guarantee 18)."""

from .aio import AsyncConsumer
from .consumer import Consumer, ConsumerStatus
from .journal import Journal
from .slices import Entry

__all__ = ["AsyncConsumer", "Consumer", "ConsumerStatus", "Entry", "Journal"]
