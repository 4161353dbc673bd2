"""The worker threads: the only caller of decoders, of plain callbacks and of a plain `on_listen` (guarantee 8).

Every function here runs on a worker, without the dispatcher's lock, unless it says otherwise.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .. import threads
from ..log import CRITICAL, ERROR, describe, log
from ..registry import SYSCHAN
from .coverage import ListenCall
from .eventloops import EventLoops, awaits
from .mailbox import MAX_TURN, Mailbox
from .runs import FAILED, UNKNOWN, Entry, Run
from .turns import Worker

if TYPE_CHECKING:
    from ..registry import Subscription
    from .dispatcher import Dispatcher

TURN_SECONDS = 0.005  # that a mailbox may keep a worker while others are waiting
QUICK, SLOW = 0.002, 0.010  # seconds that one turn should take: more notifications at a time below, fewer above


class Workers:
    """`count` threads between `start` and the dispatcher's `halt`. `fatal()` stops the notifier."""

    def __init__(
        self, count: int, dispatcher: Dispatcher, decode: Callable[[str], Any], fatal: Callable[[], None]
    ) -> None:
        self._count, self._dispatcher, self._decode, self._fatal = count, dispatcher, decode, fatal
        self._loops = EventLoops(dispatcher, self)
        self._alive: dict[int, threading.Thread] = {}  # by number
        dispatcher.turns.reclaim = self._loops.reclaim

    # -- threads ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have all of them run; those that are still in a call from before go on. Any thread."""
        for number in range(1, self._count + 1):
            with self._dispatcher.lock:
                if number in self._alive:
                    continue
                name = f"pgnotifier-worker-{number}"
                thread = threading.Thread(target=self._work, args=(number,), name=name, daemon=True)
                self._alive[number] = thread
            try:
                threads.start(thread)
            except BaseException:
                self._alive.pop(number, None)  # if it has started, it ends at once
                raise

    @property
    def ended(self) -> bool:
        """Whether no worker is left, and no call is under way on an event loop. Any thread."""
        return not self._alive and not self._loops.busy()

    def has_caller(self) -> bool:
        """Whether the current thread is a worker, or runs an event loop that makes calls or is about to."""
        return threading.current_thread() in self._alive.values() or self._loops.has_caller()

    def _work(self, number: int) -> None:
        turns, worker, me = self._dispatcher.turns, Worker(), threading.current_thread()
        while self._alive.get(number) is me:
            if (turn := turns.next(worker)) is None:
                with self._dispatcher.lock:
                    if not turns.running:  # otherwise it was started again meanwhile
                        self._alive.pop(number, None)
                continue
            box, hand = turn
            began = perf_counter()
            worker.until = worker.until or began + TURN_SECONDS
            worker.box = box
            try:
                sub = box.sub
                if type(hand) is Run and sub is not None and not sub.awaits:
                    worker.delivered = self._call(box, hand, sub)
                else:
                    self._turn(worker, box, hand, sub)
            except BaseException as error:  # none of user code's, which is guarded
                log(CRITICAL, "a worker met what it did not expect", error=error)
            ended = perf_counter()
            if ended - began > SLOW:
                box.turn = max(1, box.turn // 2)
            elif ended - began < QUICK and box.turn < MAX_TURN:
                box.turn = min(MAX_TURN, box.turn * 2)
            worker.stays = ended < worker.until
            del turn, box, hand, sub  # they would be kept alive while the worker waits
        turns.bell.ring()

    # -- calls -----------------------------------------------------------------------------------------------

    def _turn(self, worker: Worker, box: Mailbox, hand: Entry, sub: Subscription | None) -> None:
        if sub is not None and sub.loop is not None and awaits(sub, hand):
            if self._ship(box, hand, sub):
                worker.box = None  # an event loop has it
            elif isinstance(hand, ListenCall):
                worker.failed = hand
        elif isinstance(hand, ListenCall):
            worker.failed = self._listen(box, hand, sub)
        elif sub is not None:
            worker.delivered = self._call(box, hand, sub)

    def _call(self, box: Mailbox, run: Run, subscription: Subscription) -> int:
        """Call the subscriber for each notification in hand; returns how many calls ended well."""
        sub: Subscription | None = subscription
        decode, id, channel, decoded = self._decode, box.id, run.channel, run.decoded
        fn, delivered = subscription.fn, 0
        for place in range(run.start, run.stop):
            if box.sub is not sub:
                sub = self._dispatcher.current(box, run)
                if sub is None:
                    break
                if sub.awaits:
                    self._dispatcher.put_back(box, run, place)
                    break
                fn = sub.fn
            notification = run.notifications[place]
            try:
                if decoded is None:
                    try:
                        payload = decode(notification[1])
                    except Exception as error:
                        self._undecodable(channel, notification[1], error)
                        continue
                else:
                    payload = decoded.payloads[place]
                    if payload is UNKNOWN:
                        payload = self._payload(run, place)
                    if payload is FAILED:
                        continue
                result = fn(id, channel, payload, notification[2])
                if result is not None:
                    refuse_coroutine(result)
                delivered += 1
            except Exception as error:
                self.failed(box, channel, error)
            except BaseException as error:
                self.fatally(box, error)
        return delivered

    def _payload(self, run: Run, place: int) -> Any:
        """A payload, decoded by the first worker that needs it; FAILED, and reported, where it can't be decoded."""
        decoded, text = run.decoded, run.notifications[place][1]
        if decoded is not None:
            if decoded.payloads[place] is UNKNOWN:
                with decoded.lock:
                    if decoded.payloads[place] is UNKNOWN:
                        decoded.payloads[place] = self._decoded(run.channel, text)
            return decoded.payloads[place]
        return self._decoded(run.channel, text)

    def _decoded(self, channel: str, text: str) -> Any:
        try:
            return self._decode(text)
        except Exception as error:
            self._undecodable(channel, text, error)
            return FAILED

    def _listen(self, box: Mailbox, call: ListenCall, sub: Subscription | None) -> ListenCall | None:
        """Call `on_listen`; returns the call where it failed, or its subscription is muted or gone."""
        if sub is None:
            return call
        if sub.on_listen is None:
            return None
        try:
            refuse_coroutine(sub.on_listen(box.id, call.channel, call.gap))
            return None
        except Exception as error:
            self.failed(box, call.channel, error)
        except BaseException as error:
            self.fatally(box, error)
        return call

    def _ship(self, box: Mailbox, hand: Entry, sub: Subscription) -> bool:
        """Hand over to the subscription's event loop, decoded; False where that is closed, and all calls failed."""
        items: list[tuple[int, Any, int]] = []
        if isinstance(hand, Run):
            for place in range(hand.start, hand.stop):
                payload = self._payload(hand, place)
                if payload is not FAILED:
                    items.append((place, payload, hand.notifications[place][2]))
        else:
            items.append((0, hand, 0))
        return self._loops.take(box, hand, sub, items)

    # -- what went wrong: on workers and event loops -----------------------------------------------------------

    def failed(self, box: Mailbox, channel: str, error: BaseException) -> None:
        """Log, count and report a call that raised."""
        self._count_failure()
        log(ERROR, "subscriber %r failed on channel %r", box.id, channel, error=error)
        if channel != SYSCHAN:
            event = {"event": "callback_failed", "id": box.id, "channel": channel, "error": describe(error)}
            self._dispatcher.event(event)

    def _undecodable(self, channel: str, text: str, error: Exception) -> None:
        self._count_failure()
        log(ERROR, "cannot decode %r on channel %r", text, channel, error=error)
        if channel != SYSCHAN:
            event = {"event": "decode_failed", "channel": channel, "payload": text, "error": describe(error)}
            self._dispatcher.event(event)

    def fatally(self, box: Mailbox, error: BaseException) -> None:
        """A callback wants the program to end: stop the notifier."""
        self._count_failure()
        log(CRITICAL, "subscriber %r raised %s: stopping", box.id, type(error).__name__)
        self._fatal()

    def _count_failure(self) -> None:
        with self._dispatcher.lock:
            self._dispatcher.failed += 1


def refuse_coroutine(result: object) -> None:
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("the callback returned a coroutine: subscribe the coroutine function itself")
