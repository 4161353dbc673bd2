"""The parts of a notifier that the journal uses besides public methods: events, backoff, and decoder."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import random
from typing import TYPE_CHECKING, Any

from ..aio import AsyncNotifier
from ..connection import delay, next_attempt
from ..delivery import Puller, Stream

if TYPE_CHECKING:
    from ..delivery import Dispatcher
    from ..delivery.mailbox import Run
    from ..notifier import Notifier


class Seam:
    """A notifier, or the one within an `AsyncNotifier`."""

    def __init__(self, notifier: Notifier | AsyncNotifier) -> None:
        self.notifier: Notifier = notifier._notifier if isinstance(notifier, AsyncNotifier) else notifier
        self.decode: Callable[[str], Any] = self.notifier._decode
        self._retry_delay = self.notifier._options[2]

    def listen(self, channel: str, id: Hashable = None) -> Stream:
        """Listen as `Notifier.listen`, without decoding; `deliver` is "latest" with an `id`, else "all"."""
        notifier = self.notifier
        stream = Stream(_Raw(notifier), (channel,), id)
        notifier._supervisor.change(notifier._listening(stream, "all" if id is None else "latest"), True)
        return stream

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event to the subscribers of SYSCHAN."""
        self.notifier._dispatcher.event(event)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before `attempt` (from 1), by the notifier's `retry_delay`."""
        return delay(attempt, *self._retry_delay, random())

    def next_attempt(self, attempt: int, lived: float) -> int:
        """Return the attempt to count next, after a connection that lasted `lived` seconds."""
        return next_attempt(attempt, lived, *self._retry_delay)


class _Raw:
    """Gives a stream payloads as texts, because a user's decoder may know only its own payloads."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def _delivery(self) -> tuple[Dispatcher, Any]:
        return self._notifier._dispatcher, self

    def own_payload(self, run: Run, place: int) -> str:
        return str(run.notifications[place][1])

    def _release(self, id: Hashable, puller: Puller) -> None:
        self._notifier._release(id, puller)

    def _forget(self, id: Hashable, puller: Puller) -> None:
        self._notifier._forget(id, puller)
