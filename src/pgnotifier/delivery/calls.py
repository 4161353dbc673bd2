"""The only caller of user code: decoders, callbacks and `on_listen`; on workers here, on event loops by `loops`.

Whoever calls `run` holds the mailbox's claim, so that one id never runs on two threads at once.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from psycopg import Notify

from .. import registry
from ..registry import Registry, Subscription
from .coverage import Telling
from .eventloops import Loops
from .guard import CannotDecode
from .items import Begin, Fanout
from .mailbox import MOST, Mailbox

QUICK, SLOW = 0.002, 0.010  # seconds that a turn should take: more items at a time below, fewer above

_UNKNOWN: Any = object()


class Calls(Loops):
    """`view`, of `Guard`, is the registry that calls follow."""

    def run(self, box: Mailbox) -> bool:
        """Give `box` a turn; whether an event loop has its claim now."""
        decode, id = self._decode, box.id
        began = perf_counter()
        hand = box.grab()
        epoch = self.epoch  # after that: what came since a stop must not count as taken before it
        subs = box.subs
        delivered, number = 0, -1
        seen = box.seen
        for item in hand:
            number += 1
            if self.view is not seen:
                subs, seen = self._refreshed(box)
                if self.epoch != epoch:
                    self.void(box, hand[number:])
                    break
            kind = type(item)
            if kind is Notify:
                channel, text, pid = item  # type: ignore[misc]
            elif kind is Telling:
                if box.barriers and item.channel in box.barriers:
                    continue  # it was for an earlier subscription; the new one has a telling of its own
                if self.on_loop(box, item):
                    box.delivered += delivered
                    return self.ship(box, hand[number:])
                self.tell(box, item)  # type: ignore[arg-type]
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
                sub = subs[channel] = registry.subscription(seen, id, channel)
            if sub is None:
                continue
            if sub.awaits:
                box.delivered += delivered
                return self.ship(box, hand[number:])
            try:
                if kind is Notify:
                    try:
                        payload = decode(text)
                    except Exception as error:
                        self.undecodable(box, channel, text, error)
                        continue
                else:
                    payload = self.payload(box, item)  # type: ignore[arg-type]
                result = sub.fn(id, channel, payload, pid)
                if result is not None:
                    self.refuse_coroutine(result)
                delivered += 1
            except CannotDecode:
                pass
            except Exception as error:
                self.failed(box, channel, error)
            except BaseException as error:
                self.fatally(box, error)
        box.delivered += delivered
        took = perf_counter() - began
        if took < QUICK:
            box.turn = min(MOST, box.turn * 2)
        elif took > SLOW:
            box.turn = max(1, box.turn // 2)
        return False

    def fan(self, job: Fanout, end: float) -> None:
        """Call those that are left in `job`, until `end` (of `perf_counter`), and give back their claims."""
        item, left, payload = job.item, job.left, _UNKNOWN
        channel, pid = item.channel, item.pid
        known: Registry | None = None
        as_routed = False
        while True:
            try:
                box, sub = left.popleft()
            except IndexError:
                return
            box.held = 0
            try:
                if self.view is not known:
                    with self.telling:  # as in `_refreshed`
                        known = self.view
                        current = self.epoch == job.epoch
                        as_routed = current and known.channels.get(channel) is job.entry
                if not as_routed:
                    found = registry.subscription(known, box.id, channel) if current else None
                    if found is None:
                        continue
                    sub = found
                    if sub.awaits:
                        box.put_first(item)
                        continue
                if box.barriers and channel in box.barriers:
                    continue
                if payload is _UNKNOWN:
                    payload = self.payload(box, item)
                result = sub.fn(box.id, channel, payload, pid)
                if result is not None:
                    self.refuse_coroutine(result)
                box.delivered += 1
            except CannotDecode:
                pass
            except Exception as error:
                self.failed(box, channel, error)
            except BaseException as error:
                self.fatally(box, error)
            finally:
                if box.items or box.leaving or box.unannounced:
                    self.released(box)
                else:
                    box.fanned = None
                    box.claim.release()
                    if box.items or box.leaving:
                        self.offered(box)
            if perf_counter() > end:
                return

    def _refreshed(self, box: Mailbox) -> tuple[dict[str, Subscription | None], registry.Registry]:
        with self.telling:  # a change is under way: what it tells stands in the mailbox before it shows
            box.subs, box.seen = {}, self.view
            return box.subs, box.seen
