"""What surrounds a call of user code: decoding, telling, and reporting what failed (contract 8).

Whoever uses it for a mailbox holds the mailbox's claim.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

from .. import registry
from ..log import CRITICAL, ERROR, describe, log
from ..registry import EMPTY, SYSCHAN, Subscription
from .coverage import Hearing, Telling
from .items import Begin, Item, Shared
from .mailbox import Mailbox


class CannotDecode(Exception):
    """Reported already."""


class Guard:
    """`view` is the registry that calls follow; `epoch` changes when all that was taken before is void.

    `report(event)` tells SYSCHAN's subscribers. Set later: `released(mailbox)` takes back a claim, and
    `offered(mailbox)` sees to one whose claim was given back with something in it.
    """

    def __init__(
        self,
        decode: Callable[[str], Any],
        report: Callable[[dict[str, Any]], None],
        fatal: Callable[[], None],
    ) -> None:
        self._decode, self._report, self._fatal = decode, report, fatal
        self.released: Callable[[Mailbox], None] = lambda box: None
        self.offered: Callable[[Mailbox], None] = lambda box: None
        self.view = EMPTY
        self.epoch = 0
        self.hearing: Hearing = Hearing()
        self.telling: Any = threading.RLock()  # held to change `view` together with `hearing`
        self.awaiting: set[Mailbox] = set()  # on an event loop, begun

    def payload(self, box: Mailbox, item: Shared) -> Any:
        if item.undecoded:
            with item.lock:
                if item.undecoded:
                    try:
                        item.payload = self._decode(item.text)
                    except Exception as error:
                        item.failed = True
                        self.undecodable(box, item.channel, item.text, error)
                    item.undecoded = False
        if item.failed:
            raise CannotDecode
        return item.payload

    def tell(self, box: Mailbox, item: Telling) -> None:
        sub = self.subscription_to_tell(box, item)
        if sub is None or sub.on_listen is None:
            return
        try:
            result = sub.on_listen(box.id, item.channel, item.gap)
            self.refuse_coroutine(result)
        except Exception as error:
            self.failed(box, item.channel, error)
        except BaseException as error:
            self.fatally(box, error)

    def subscription_to_tell(self, box: Mailbox, item: Telling) -> Subscription | None:
        with self.telling:
            sub = registry.subscription(self.view, box.id, item.channel)
            if sub is None:
                self.hearing.give_back(box.id, item)
            return sub

    @staticmethod
    def refuse_coroutine(result: object) -> None:
        if inspect.iscoroutine(result):
            result.close()
            raise TypeError("the callback returned a coroutine: subscribe the coroutine function itself")

    def failed(self, box: Mailbox, channel: str, error: BaseException) -> None:
        box.failed += 1
        log(ERROR, "subscriber %r failed on channel %r", box.id, channel, error=error)
        if channel != SYSCHAN:
            self._report({"event": "callback_failed", "id": box.id, "channel": channel, "error": describe(error)})

    def undecodable(self, box: Mailbox, channel: str, text: str, error: Exception) -> None:
        box.failed += 1
        log(ERROR, "cannot decode %r on channel %r", text, channel, error=error)
        if channel != SYSCHAN:
            self._report({"event": "decode_failed", "channel": channel, "payload": text, "error": describe(error)})

    def fatally(self, box: Mailbox, error: BaseException) -> None:
        box.failed += 1
        log(CRITICAL, "subscriber %r raised %s: stopping", box.id, type(error).__name__)
        self._fatal()

    def void(self, box: Mailbox, items: Iterable[Item]) -> None:
        """Throw away what was taken before a stop; what was to be told comes first where all has begun again."""
        with self.telling:
            items = tuple(items)
            for item in items:
                if type(item) is Begin:
                    box.begun(item.channel)
            tellings = [item for item in items if type(item) is Telling]
            box.give_back([item for item in tellings if not self.hearing.give_back(box.id, item)])
