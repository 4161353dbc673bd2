"""The only caller of user code: decoders, callbacks and `on_listen`, on workers and on event loops (contract 8).

Whoever calls `run` holds the mailbox's claim, so that one id never runs on two threads at once.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

from psycopg import Notify

from . import registry
from .hearing import Hearing, Telling
from .items import Begin, Item, Shared
from .log import CRITICAL, ERROR, describe, log
from .mailbox import MOST, Mailbox
from .registry import EMPTY, SYSCHAN, Subscription

QUICK, SLOW = 0.002, 0.010  # seconds that a turn should take: more items at a time below, fewer above

_UNKNOWN: Any = object()


class _CannotDecode(Exception):
    """Reported already."""


class Calls:
    """`view` is the registry that calls follow; `epoch` changes when all that was taken before is void.

    `report(event)` tells SYSCHAN's subscribers; `released(mailbox)`, set later, takes back the claim that an event
    loop had.
    """

    def __init__(
        self,
        decode: Callable[[str], Any],
        report: Callable[[dict[str, Any]], None],
        fatal: Callable[[], None],
    ) -> None:
        self._decode, self._report, self._fatal = decode, report, fatal
        self.released: Callable[[Mailbox], None] = lambda box: None
        self.view = EMPTY
        self.epoch = 0
        self.hearing = Hearing()
        self.telling = threading.RLock()  # held to change `view` together with `hearing`
        self.awaiting: set[Mailbox] = set()  # on an event loop, begun

    def run(self, box: Mailbox) -> bool:
        """Give `box` a turn; whether an event loop has its claim now."""
        decode, id = self._decode, box.id
        began = perf_counter()
        hand = box.grab()
        epoch = self.epoch  # after that: what came since a stop must not count as taken before it
        subs = box.subs
        delivered = 0
        for number, item in enumerate(hand):
            view = self.view
            if view is not box.seen:
                subs, view = self._refreshed(box)
                if self.epoch != epoch:
                    self._void(box, hand[number:])
                    break
            kind = type(item)
            if kind is Notify:
                channel, text, pid = item  # type: ignore[misc]
            elif kind is Telling:
                if box.barriers and item.channel in box.barriers:
                    continue  # it was for an earlier subscription; the new one has a telling of its own
                if self._on_loop(box, item):
                    box.delivered += delivered
                    return self._ship(box, hand[number:])
                self._tell(box, item)  # type: ignore[arg-type]
                continue
            elif kind is Begin:
                box.begun(item.channel)
                continue
            else:
                channel, pid = item.channel, item.pid  # type: ignore[union-attr]
            if box.barriers and channel in box.barriers:
                continue  # it was unsubscribed, and subscribed again, since then
            sub = subs.get(channel, _UNKNOWN)
            if sub is _UNKNOWN:
                sub = subs[channel] = registry.subscription(view, id, channel)
            if sub is None:
                continue
            if sub.awaits:
                box.delivered += delivered
                return self._ship(box, hand[number:])
            try:
                if kind is Notify:
                    try:
                        payload = decode(text)
                    except Exception as error:
                        self._undecodable(box, channel, text, error)
                        continue
                else:
                    payload = self._payload(box, item)  # type: ignore[arg-type]
                result = sub.fn(id, channel, payload, pid)
                if result is not None and inspect.iscoroutine(result):
                    result.close()
                    raise TypeError("the callback returned a coroutine: subscribe the coroutine function itself")
                delivered += 1
            except _CannotDecode:
                pass
            except Exception as error:
                self._failed(box, channel, error)
            except BaseException as error:
                self._fatally(box, error)
        box.delivered += delivered
        took = perf_counter() - began
        if took < QUICK:
            box.turn = min(MOST, box.turn * 2)
        elif took > SLOW:
            box.turn = max(1, box.turn // 2)
        return False

    def _refreshed(self, box: Mailbox) -> tuple[dict[str, Subscription | None], registry.Registry]:
        with self.telling:  # a change is under way: what it tells stands in the mailbox before it shows
            box.subs, box.seen = {}, self.view
            return box.subs, box.seen

    def _void(self, box: Mailbox, items: Iterable[Item]) -> None:
        """Throw away what was taken before a stop; what was to be told comes first where all has begun again."""
        with self.telling:
            items = tuple(items)
            for item in items:
                if type(item) is Begin:
                    box.begun(item.channel)
            tellings = [item for item in items if type(item) is Telling]
            box.give_back([item for item in tellings if not self.hearing.give_back(box.id, item)])

    # -- one call ------------------------------------------------------------------------------------------

    def _payload(self, box: Mailbox, item: Shared) -> Any:
        if item.undecoded:
            with item.lock:
                if item.undecoded:
                    try:
                        item.payload = self._decode(item.text)
                    except Exception as error:
                        item.failed = True
                        self._undecodable(box, item.channel, item.text, error)
                    item.undecoded = False
        if item.failed:
            raise _CannotDecode
        return item.payload

    def _tell(self, box: Mailbox, item: Telling) -> None:
        sub = self._subscription_to_tell(box, item)
        if sub is None or sub.on_listen is None:
            return
        try:
            result = sub.on_listen(box.id, item.channel, item.gap)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError("on_listen returned a coroutine: pass the coroutine function itself")
        except Exception as error:
            self._failed(box, item.channel, error)
        except BaseException as error:
            self._fatally(box, error)

    def _subscription_to_tell(self, box: Mailbox, item: Telling) -> Subscription | None:
        with self.telling:
            sub = registry.subscription(self.view, box.id, item.channel)
            if sub is None:
                self.hearing.give_back(box.id, item)
            return sub

    def _failed(self, box: Mailbox, channel: str, error: BaseException) -> None:
        box.failed += 1
        log(ERROR, "subscriber %r failed on channel %r", box.id, channel, error=error)
        if channel != SYSCHAN:
            self._report({"event": "callback_failed", "id": box.id, "channel": channel, "error": describe(error)})

    def _undecodable(self, box: Mailbox, channel: str, text: str, error: Exception) -> None:
        box.failed += 1
        log(ERROR, "cannot decode %r on channel %r", text, channel, error=error)
        if channel != SYSCHAN:
            self._report({"event": "decode_failed", "channel": channel, "payload": text, "error": describe(error)})

    def _fatally(self, box: Mailbox, error: BaseException) -> None:
        box.failed += 1
        log(CRITICAL, "subscriber %r raised %s: stopping", box.id, type(error).__name__)
        self._fatal()

    # -- event loops ---------------------------------------------------------------------------------------

    def _on_loop(self, box: Mailbox, item: Item) -> Any:
        """The event loop on which `item` is to be handled; None for a worker."""
        if type(item) is Begin:
            return None
        sub = registry.subscription(self.view, box.id, item.channel)
        return None if sub is None else self._loop_of(sub, item)

    @staticmethod
    def _loop_of(sub: Subscription, item: Item) -> Any:
        return sub.loop if (sub.tells_by_awaiting if type(item) is Telling else sub.awaits) else None

    def _ship(self, box: Mailbox, hand: list[Item]) -> bool:
        """Hand the first of `hand` that belong to one event loop over to it, decoded; put back the others."""
        loop = self._on_loop(box, hand[0])
        if loop is None:  # it has another callback by now
            box.give_back(hand)
            return False
        batch: list[Shared | Telling] = []
        rest = 0
        for rest, item in enumerate(hand, 1):
            if self._on_loop(box, item) is not loop:
                rest -= 1
                break
            if type(item) is Notify:
                item = Shared(item.channel, item.payload, item.pid, threading.Lock())
            if isinstance(item, Shared):
                try:
                    self._payload(box, item)
                except _CannotDecode:
                    continue
                except BaseException as error:  # as in `run`; what is in hand must not be lost with its barriers
                    self._fatally(box, error)
                    continue
            batch.append(item)  # type: ignore[arg-type]
        box.give_back(hand[rest:])
        if not batch:
            return False
        box.loop, box.shipped = loop, deque(batch)
        try:
            loop.call_soon_threadsafe(self._begin, box, box.shipped, self.epoch)
        except RuntimeError as error:  # the loop is closed
            box.loop, box.shipped = None, None
            for item in batch:
                self._failed(box, item.channel, error)
            return False
        return True

    def _begin(self, box: Mailbox, shipped: deque[Shared | Telling], epoch: int) -> None:
        if box.shipped is shipped:
            self.awaiting.add(box)
            try:
                task = box.loop.create_task(self._await(box, shipped, epoch))
            except BaseException:
                self.reclaim(box, shipped)
                raise
            # A task that is cancelled before it has begun runs nothing of its own.
            task.add_done_callback(lambda _: self.reclaim(box, shipped))

    async def _await(self, box: Mailbox, shipped: deque[Shared | Telling], epoch: int) -> None:
        loop = box.loop
        try:
            while shipped:
                if self.epoch != epoch:
                    self._void(box, tuple(shipped))
                    shipped.clear()
                    continue
                if shipped[0].channel in box.barriers:
                    shipped.popleft()  # of an earlier subscription; put back, it would come here again for ever
                    continue
                sub = registry.subscription(self.view, box.id, shipped[0].channel)
                if sub is None:
                    self._void(box, [shipped.popleft()])
                elif self._loop_of(sub, shipped[0]) is loop:
                    await self._await_one(box, sub, shipped.popleft())
                else:
                    return  # it has another callback now: a worker looks again
        finally:
            self.reclaim(box, shipped)

    def reclaim_from_closed(self, box: Mailbox) -> None:
        """Take the claim back where the event loop that has it is closed."""
        loop, shipped = box.loop, box.shipped
        if shipped is not None and loop is not None and loop.is_closed():
            self.reclaim(box, shipped, closed=True)

    def reclaim(self, box: Mailbox, shipped: deque[Shared | Telling], closed: bool = False) -> None:
        """Take the claim back from an event loop, with what was not begun; what was, fails where it is closed."""
        if box.shipped is not shipped:  # without the lock: the garbage collector may come here from anywhere
            return
        with box.lock:
            if box.shipped is not shipped:
                return
            box.shipped = box.loop = None
            begun, box.awaited = box.awaited, None
        if closed and begun is not None:
            self._failed(box, begun.channel, RuntimeError("the event loop was closed under the callback"))
        box.give_back(tuple(shipped))
        self.awaiting.discard(box)
        self.released(box)

    async def _await_one(self, box: Mailbox, sub: Any, item: Shared | Telling) -> None:
        box.awaited = item
        try:
            if isinstance(item, Telling):
                await sub.on_listen(box.id, item.channel, item.gap)
            else:
                await sub.fn(box.id, item.channel, item.payload, item.pid)
                box.delivered += 1
        except GeneratorExit:  # collected after its loop was closed
            raise
        except asyncio.CancelledError as error:
            self._failed(box, item.channel, error)
            raise
        except Exception as error:
            self._failed(box, item.channel, error)
        except BaseException as error:
            self._fatally(box, error)
            raise
        finally:
            if box.awaited is item:
                box.awaited = None
