"""The code that all executors share: decoding, and reports of failed calls (guarantees 7 and 8).

Workers, event loops and readers of streams are executors. An executor takes a hand under the state lock, reads
`Mailbox.sub` before each call, and decodes payloads here. It leaves in `Mailbox.rest` what it could not handle, and
gives the mailbox back with `Turns.end`. Every method runs on the executor's thread, without the lock.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Hashable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..log import CRITICAL, ERROR, describe, log
from ..registry import SYSCHAN
from .mailbox import FAILED, UNKNOWN, Mailbox, Run

if TYPE_CHECKING:
    from .dispatcher import Dispatcher


class Calls:
    """Decodes payloads with `decode(text)`, and reports failed calls. `fatal()` stops the notifier."""

    def __init__(self, dispatcher: Dispatcher, decode: Callable[[str], Any], fatal: Callable[[], None]) -> None:
        self._dispatcher, self.decode, self._fatal = dispatcher, decode, fatal
        self.callers: set[Any] = set()  # workers and batches: `box` is the mailbox whose calls they make, or None

    def longest(self) -> tuple[Hashable, str, float] | None:
        """Return id, channel and seconds of the call that has been running longest, or None. Any thread."""
        moment, found = monotonic(), None
        for box in [caller.box for caller in tuple(self.callers)]:
            if box is not None and (hand := box.hand) is not None and 0 < (began := box.began) < moment:
                moment, found = began, (box.id, hand.channel)
        return None if found is None else (*found, monotonic() - moment)

    def payload(self, run: Run, place: int) -> Any:
        """Return a payload, decoded by the first executor that needs it; FAILED, and reported, if that fails."""
        payloads = run.payloads
        if payloads is None:
            return self._decoded(run, place)
        if payloads[place] is UNKNOWN:
            with run.lock:
                if payloads[place] is UNKNOWN:
                    payloads[place] = self._decoded(run, place)
        return payloads[place]

    def own_payload(self, run: Run, place: int) -> Any:
        """Return a payload to a stream's reader, which may decode a copy, to wait for no thread and delay none.

        A `BaseException`, such as Ctrl-C, is raised.
        """
        payloads = run.payloads
        if payloads is not None and payloads[place] is not UNKNOWN:
            return payloads[place]
        try:
            payload = self.decode(run.notifications[place][1])
        except Exception as error:
            self.undecodable(run, place, error)
            payload = FAILED
        if payloads is not None and not run.lock.locked():
            with run.lock:
                if payloads[place] is UNKNOWN:
                    payloads[place] = payload
        return payload

    def _decoded(self, run: Run, place: int) -> Any:
        try:
            return self.decode(run.notifications[place][1])
        except BaseException as error:
            self.undecodable(run, place, error)
            return FAILED

    def undecodable(self, run: Run, place: int, error: BaseException) -> None:
        """Log, count and report a payload that can't be decoded."""
        channel, text = run.channel, run.notifications[place][1]
        log(ERROR, "cannot decode %r on channel %r", text, channel, error=error)
        self._report(channel, {"event": "decode_failed", "channel": channel, "payload": text}, error)

    def failed(self, box: Mailbox, channel: str, error: BaseException) -> None:
        """Log, count and report a call that raised; stop the notifier after a `SystemExit` or Ctrl-C."""
        if isinstance(error, Exception | CancelledError):
            log(ERROR, "subscriber %r failed on channel %r", box.id, channel, error=error)
            self._report(channel, {"event": "callback_failed", "id": box.id, "channel": channel}, error)
        else:
            self._count(error)
            log(CRITICAL, "subscriber %r raised %s: stopping the notifier", box.id, type(error).__name__)
            self._fatal()

    def _report(self, channel: str, event: dict[str, Any], error: BaseException) -> None:
        text = self._count(error)
        if channel != SYSCHAN:
            self._dispatcher.event({**event, "error": text})

    def _count(self, error: BaseException) -> str:
        text = describe(error)
        with self._dispatcher.lock:
            self._dispatcher.failed += 1
            self._dispatcher.last_failure = text
        return text
