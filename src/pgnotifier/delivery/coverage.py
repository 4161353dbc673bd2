"""Pure: what every subscription with `on_listen` was told, and what it may have missed since (guarantee 10).

Every method runs under the state lock, on any thread. No I/O: the caller passes the times.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar

from ..clock import earliest
from ..gap import Gap, Reason, merge


@dataclass(slots=True, eq=False)
class ListenCall:
    """A call of `on_listen` that stands in a mailbox: with a gap, or with None the first time.

    `state` distinguishes its subscription from a later one of the same id and channel; None if both may get it.
    """

    channel: str
    gap: Gap | None
    state: object = None
    size: ClassVar[int] = 0  # notifications

    def merged(self, later: object) -> ListenCall | None:
        """Return one call for two with a gap on the same channel; None if `later` is anything else."""
        if isinstance(later, ListenCall) and later.channel == self.channel and self.gap and later.gap:
            return ListenCall(self.channel, merge(self.gap, later.gap), self.state or later.state)
        return None


@dataclass(slots=True, eq=False)
class _State:
    """`told`: the first call was made, or waits. `covered`: it misses nothing now. `missed`: the gap until now."""

    told: bool = False
    covered: bool = False
    missed: Gap | None = None

    def miss(self, gap: Gap) -> None:
        if self.told:  # otherwise the first call is still to come, and covers everything before it
            self.missed = merge(self.missed, gap)


class Coverage:
    """One state for each subscription with `on_listen`."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, Hashable], _State] = {}

    def update(
        self,
        channel: str,
        id: Hashable,
        wanted: bool,
        covered: bool,
        since: datetime,
        until: datetime,
        tell: Callable[[ListenCall], object] = lambda call: None,
    ) -> ListenCall | None:
        """Follow a change of one subscription; return the call of `on_listen` that is due, or None.

        `wanted`: it is registered with an `on_listen`. `covered`: it hears everything from now on. If that ends, it
        had heard everything before `since`. `tell(call)` runs before the call counts as made, so that Ctrl-C in
        between can repeat the call, but not lose it.
        """
        if not wanted:
            self._states.pop((channel, id), None)
            return None
        state = self._states.setdefault((channel, id), _State())
        call = None
        if covered and not state.covered:
            missed = state.missed
            if not state.told:
                call = ListenCall(channel, None, state)
            elif missed is not None:
                call = ListenCall(channel, replace(missed, since=earliest(missed.since), until=until), state)
            if call is not None:
                tell(call)
            state.told, state.missed = True, None
        elif state.covered and not covered:
            state.miss(Gap(channel, "muted", since, until))
        state.covered = covered
        return call

    def is_told(self, channel: str, id: Hashable) -> bool:
        """Return True if the first call of `on_listen` was made, or waits."""
        state = self._states.get((channel, id))
        return state is not None and state.told

    def lose(self, reason: Reason, since: datetime, until: datetime, error: str | None = None) -> None:
        """Mark all subscriptions as no longer covered. All had heard everything before `since`."""
        for (channel, _), state in self._states.items():
            state.miss(Gap(channel, reason, since, until, error=error))
            state.covered = False

    def give_back(self, id: Hashable, call: ListenCall) -> bool:
        """Take back a call that was not made, or failed. Return False if it is still due: it is covered again.

        Otherwise the next call reports what this one would have reported.
        """
        state = self._states.get((call.channel, id))
        if state is None or call.state not in (None, state):
            return True
        if state.covered:
            return False
        if call.gap is None:
            state.told, state.missed = False, None
        else:
            state.miss(call.gap)
        return True
