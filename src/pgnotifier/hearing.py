"""Pure: what every subscription with `on_listen` was told, and what it may have missed since (contract 10).

Changed under the lock of Delivery. No I/O, no threads: the caller brings the times.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable
from dataclasses import replace
from datetime import datetime

from . import registry
from .clock import earliest
from .gap import Gap, Reason, merge
from .registry import Registry, Touched


class Telling:
    """A call of `on_listen` that stands in a mailbox: with a gap, or with None the first time."""

    __slots__ = ("channel", "gap")
    channel: str
    gap: Gap | None

    def __init__(self, channel: str, gap: Gap | None) -> None:
        self.channel, self.gap = channel, gap


class _State:
    """`told`: the first call is made, or under way. `hears`: nothing is being missed. `missed`: since then."""

    __slots__ = ("hears", "missed", "told")

    def __init__(self) -> None:
        self.told = self.hears = False
        self.missed: Gap | None = None


class Hearing:
    def __init__(self) -> None:
        self._states: dict[str, dict[Hashable, _State]] = {}

    def follow(
        self,
        reg: Registry,
        active: Container[str],
        touched: Iterable[Touched],
        since: Callable[[Hashable], datetime],
        until: datetime,
    ) -> list[tuple[Hashable, Telling]]:
        """Compare `touched` with what `reg` wants and the server does; return what has to be told, by id.

        `active`: the channels listened to now. `since(id)`: before that, an id that hears no longer has heard all.
        """
        tellings: list[tuple[Hashable, Telling]] = []
        for name, ids in touched:
            states = self._states.get(name, {})
            for id in tuple(states) if ids is None else ids:
                entry = reg.channels.get(name)
                sub = None if entry is None else entry.subscribers.get(id)
                if sub is None or sub.on_listen is None:
                    states.pop(id, None)
                    continue
                state = states.get(id)
                if state is None:
                    state = self._states.setdefault(name, states)[id] = _State()
                hears = name in active and registry.subscription(reg, id, name) is not None
                if hears and not state.hears:
                    if (telling := self._tell(state, name, until)) is not None:
                        tellings.append((id, telling))
                elif state.hears and not hears:
                    self._miss(state, Gap(name, "muted", since(id), until))
                state.hears = hears
            if not states:
                self._states.pop(name, None)
        return tellings

    def lose(self, reason: Reason, since: Callable[[Hashable], datetime], until: datetime, error: str | None) -> None:
        """Nobody hears anything any more."""
        for name, states in self._states.items():
            for id, state in states.items():
                self._miss(state, Gap(name, reason, since(id), until, error=error))
                state.hears = False

    def give_back(self, id: Hashable, telling: Telling) -> bool:
        """What was to be told could not be: it is told with the next one. False where it hears again already."""
        state = self._states.get(telling.channel, {}).get(id)
        if state is None:
            return True
        if state.hears:
            return False
        if telling.gap is None:
            state.told, state.missed = False, None
        else:
            self._miss(state, telling.gap)
        return True

    def channels(self) -> list[Touched]:
        """All that there is, as `follow` wants it."""
        return [(name, None) for name in self._states]

    @staticmethod
    def _miss(state: _State, gap: Gap) -> None:
        if state.told:  # else the first call is still to come, and covers all before it
            state.missed = merge(state.missed, gap)

    @staticmethod
    def _tell(state: _State, name: str, until: datetime) -> Telling | None:
        missed, state.missed = state.missed, None
        if not state.told:
            state.told = True
            return Telling(name, None)
        return None if missed is None else Telling(name, replace(missed, since=earliest(missed.since), until=until))
