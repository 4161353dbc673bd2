"""Pure: how long the listener may wait for all slow subscribers together (guarantee 9). Under the state lock."""

from __future__ import annotations

from dataclasses import dataclass

FAST = 10_000  # notifications a second: the listener waits without limit for a subscriber that takes more
GRACE_SECONDS = 0.05  # of being full, after which a mailbox's rate is known
RATE_SECONDS = 0.5  # of being full, over which the rate is measured
PATIENCE_SECONDS = 1.0  # the whole budget
REFILL = 0.01  # seconds of budget that come back in a second
LEAST = 0.01  # seconds: less is not worth a wait


class Patience:
    """One budget for a notifier. The caller passes the time, in monotonic seconds."""

    def __init__(self, moment: float) -> None:
        self._left, self._at = PATIENCE_SECONDS, moment

    def left(self, moment: float) -> float:
        """Return the seconds that the listener may still wait; 0 if they are too few."""
        self._left = min(PATIENCE_SECONDS, self._left + REFILL * (moment - self._at))
        self._at = moment
        return self._left if self._left >= LEAST else 0.0

    def spend(self, seconds: float, moment: float) -> None:
        """Take `seconds`, which the listener has waited, from the budget."""
        self.left(moment)
        self._left = max(0.0, self._left - seconds)


@dataclass(slots=True, eq=False)
class Rate:
    """Measures how fast a full mailbox empties: `taken` notifications in `seconds`, and those after `since`."""

    since: float | None = None  # monotonic seconds, when it became full; None while it is not
    seconds: float = 0.0
    taken: float = 0.0
    taken_before: int = 0  # notifications taken in all when it became full

    def begin(self, moment: float, taken: int) -> None:
        """Begin to measure: there is no room, after `taken` notifications have been taken in all."""
        if self.since is None:
            self.since, self.taken_before = moment, taken

    def end(self, moment: float, taken: int) -> None:
        """End measuring: there is room."""
        if self.since is not None:
            self.seconds += moment - self.since
            self.taken += taken - self.taken_before
            self.since = None
            if self.seconds > RATE_SECONDS:
                self.seconds, self.taken = self.seconds / 2, self.taken / 2

    def is_fast(self, moment: float, taken: int) -> bool | None:
        """Return True if the rate is over `FAST`; None while it is unknown."""
        seconds, number = self.seconds, self.taken
        if self.since is not None:
            seconds += moment - self.since
            number += taken - self.taken_before
        return None if seconds < GRACE_SECONDS else number > FAST * seconds
