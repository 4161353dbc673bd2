"""The wall clock, for what users are shown; everything that waits uses `time.monotonic`."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(timezone.utc)
