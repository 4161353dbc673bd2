"""Pure: what every subscription with `on_listen` was told, and what it may have missed since (guarantee 10).

Every method is called under the dispatcher's lock. No I/O, no threads: the caller brings the times.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from datetime import datetime

from ..clock import earliest
from ..gap import Gap, Reason, merge


class ListenCall:
    """A call of `on_listen` that stands in a mailbox: with a gap, or with None the first time.

    `state` tells the subscription from a later one of the same id and channel; None where that makes no difference.
    """

    __slots__ = ("channel", "gap", "state")

    def __init__(self, channel: str, gap: Gap | None, state: object = None) -> None:
        self.channel, self.gap, self.state = channel, gap, state

    def merged(self, later: object) -> ListenCall | None:
        """One call in place of two with a gap on the same channel; None where `later` is anything else."""
        if isinstance(later, ListenCall) and later.channel == self.channel and self.gap and later.gap:
            return ListenCall(self.channel, merge(self.gap, later.gap), self.state or later.state)
        return None


class _State:
    """`told`: the first call was made, or waits. `covered`: nothing is being missed. `missed`: what was until now."""

    __slots__ = ("covered", "missed", "told")

    def __init__(self) -> None:
        self.told = self.covered = False
        self.missed: Gap | None = None


class Coverage:
    """One state for each subscription with `on_listen`."""

    def __init__(self) -> None:
        self._states: dict[str, dict[Hashable, _State]] = {}

    def update(
        self, channel: str, id: Hashable, wanted: bool, covered: bool, since: datetime, until: datetime
    ) -> ListenCall | None:
        """Follow a change of one subscription; return the call that is due.

        `wanted`: it is registered with an `on_listen`. `covered`: it hears everything from now on. Where that ends,
        it had heard everything before `since`.
        """
        states = self._states.get(channel)
        state = None if states is None else states.get(id)
        if not wanted:
            if states is not None and state is not None:
                del states[id]
                if not states:
                    del self._states[channel]
            return None
        if state is None:
            state = self._states.setdefault(channel, {})[id] = _State()
        call = None
        if covered and not state.covered:
            call = self._due(state, channel, until)
        elif state.covered and not covered:
            self._miss(state, Gap(channel, "muted", since, until))
        state.covered = covered
        return call

    def is_told(self, channel: str, id: Hashable) -> bool:
        """Whether the first call of `on_listen` was made, or waits."""
        state = self._states.get(channel, {}).get(id)
        return state is not None and state.told

    def lose(self, reason: Reason, since: datetime, until: datetime, error: str | None = None) -> None:
        """No subscription is covered any more; all had heard everything before `since`."""
        for channel, states in self._states.items():
            for state in states.values():
                self._miss(state, Gap(channel, reason, since, until, error=error))
                state.covered = False

    def miss(self, id: Hashable, gap: Gap) -> None:
        """A subscription that is not covered has missed this, too."""
        state = self._states.get(gap.channel, {}).get(id)
        if state is not None:
            self._miss(state, gap)

    def give_back(self, id: Hashable, call: ListenCall) -> bool:
        """`call` was not made, or failed. Returns False where the subscription is covered again, and it is still due.

        Otherwise the next call says what this one would have said.
        """
        state = self._states.get(call.channel, {}).get(id)
        if state is None or call.state not in (None, state):
            return True
        if state.covered:
            return False
        if call.gap is None:
            state.told, state.missed = False, None
        else:
            self._miss(state, call.gap)
        return True

    @staticmethod
    def _miss(state: _State, gap: Gap) -> None:
        if state.told:  # otherwise the first call is still to come, and covers everything before it
            state.missed = merge(state.missed, gap)

    @staticmethod
    def _due(state: _State, channel: str, until: datetime) -> ListenCall | None:
        missed, state.missed = state.missed, None
        if not state.told:
            state.told = True
            return ListenCall(channel, None, state)
        return (
            None
            if missed is None
            else ListenCall(channel, replace(missed, since=earliest(missed.since), until=until), state)
        )
