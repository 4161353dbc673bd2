"""Pure: how long the listener may wait for subscribers that are slow, all of them together (guarantee 9)."""

from __future__ import annotations

FAST = 10_000  # notifications a second: the listener waits without limit for a subscriber that takes more
GRACE_SECONDS = 0.05  # of being full, after which that is known
RATE_SECONDS = 0.5  # of being full, over which it is measured
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


class Rate:
    """How fast a mailbox empties while it is full."""

    __slots__ = ("_seconds", "_since", "_taken", "_taken_before")

    def __init__(self) -> None:
        self._seconds, self._taken = 0.0, 0.0  # how long it was full, and how many notifications were taken
        self._since: float | None = None  # monotonic seconds, when it became full
        self._taken_before = 0

    @property
    def is_measured(self) -> bool:
        """Whether the mailbox is full."""
        return self._since is not None

    def begin(self, moment: float, taken: int) -> None:
        """The listener found no room, when `taken` notifications had been taken in all."""
        if self._since is None:
            self._since, self._taken_before = moment, taken

    def end(self, moment: float, taken: int) -> None:
        """There is room."""
        if self._since is not None:
            self._seconds += moment - self._since
            self._taken += taken - self._taken_before
            self._since = None
            if self._seconds > RATE_SECONDS:
                self._seconds, self._taken = self._seconds / 2, self._taken / 2

    def is_fast(self, moment: float, taken: int) -> bool | None:
        """Whether it is more than `FAST`; None where that is not known yet."""
        seconds, number = self._seconds, self._taken
        if self._since is not None:
            seconds += moment - self._since
            number += taken - self._taken_before
        return None if seconds < GRACE_SECONDS else number > FAST * seconds
