"""The record of a stretch in which notifications may have been missed (contract 10). No logic."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True)
class Gap:
    """What `on_listen` is told: `since` and `until` are aware UTC; `dropped` is None where it can't be known."""

    channel: str
    reason: Literal["connection", "stopped", "muted", "overflow"]
    since: datetime
    until: datetime
    dropped: int | None = None
    error: str | None = None
