"""Pure: how long the listener may wait for subscribers that are slow, all of them together (guarantee 9)."""

from __future__ import annotations

PATIENCE_SECONDS = 1.0  # the whole budget
REFILL = 0.01  # seconds of budget that come back in a second
LEAST = 0.01  # seconds: less is not worth a wait


class Patience:
    """One budget for a notifier. The caller brings the time, in monotonic seconds."""

    def __init__(self, moment: float) -> None:
        self._left, self._at = PATIENCE_SECONDS, moment

    def left(self, moment: float) -> float:
        """Seconds that the listener may still wait; 0 where that is too little."""
        self._left = min(PATIENCE_SECONDS, self._left + REFILL * (moment - self._at))
        self._at = moment
        return self._left if self._left >= LEAST else 0.0

    def spend(self, seconds: float, moment: float) -> None:
        """The listener has waited for so many seconds."""
        self.left(moment)
        self._left = max(0.0, self._left - seconds)
