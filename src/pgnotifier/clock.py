"""The clock of gaps: aware UTC, and by how much the system's clock was set back (guarantee 10)."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta, timezone
from time import monotonic

NOTICED = timedelta(seconds=1)  # smaller steps are normal adjustments

_last = datetime.now(timezone.utc), monotonic()
_set_back: deque[tuple[datetime, timedelta]] = deque(maxlen=100)  # the time shown before, and by how much


def now() -> datetime:
    """Return the system's time, and note if its clock was set back. Any thread, without a lock."""
    global _last
    moment, ticks = datetime.now(timezone.utc), monotonic()
    then, ticks_then = _last
    expected = then + timedelta(seconds=ticks - ticks_then)
    if expected - moment > NOTICED:
        _set_back.append((expected, expected - moment))
    _last = moment, ticks
    return moment


def earliest(moment: datetime) -> datetime:
    """Return the earliest time that the clock, as it is set now, may have shown at `moment`."""
    for shown, back in tuple(_set_back):
        if moment <= shown:
            moment -= back
    return moment
