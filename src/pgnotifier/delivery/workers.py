"""The worker threads: the only callers of plain callbacks and of a plain `on_listen` (guarantee 8).

Every function here runs on a worker, without the state lock, unless it says otherwise.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from .. import threads
from ..log import CRITICAL, log
from .calls import Calls
from .coverage import ListenCall
from .eventloops import Batch, awaits, busy, calling, runs_here
from .mailbox import FAILED, MAX_TURN, UNKNOWN, Entry, Mailbox, Run
from .turns import Worker

if TYPE_CHECKING:
    from ..registry import Subscription
    from .dispatcher import Dispatcher

MAX_TURNS = 32  # mailboxes that a single worker takes at a time; of several each takes one, as calls may be slow
QUICK, SLOW = 0.002, 0.010  # seconds that one turn should take: more notifications at a time below, fewer above


class Workers:
    """`count` threads from `start` until the dispatcher's `halt`. `fatal()` stops the notifier."""

    def __init__(
        self, count: int, dispatcher: Dispatcher, decode: Callable[[str], Any], fatal: Callable[[], None]
    ) -> None:
        self._count, self._dispatcher = count, dispatcher
        self.calls: Calls = Calls(dispatcher, decode, fatal)
        self._alive: dict[int, threading.Thread] = {}  # by number

    def start(self) -> None:
        """Start all threads. Those that are still in a call from before go on. Any thread."""
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
        """True if no worker is left, and no call is under way on an event loop. Any thread."""
        return not self._alive and not busy(tuple(self._dispatcher.boxes.values()))

    @property
    def missing(self) -> int:
        """The number of threads that should run and do not. Any thread."""
        return self._count - sum(thread.is_alive() for thread in tuple(self._alive.values()))

    def has_caller(self) -> bool:
        """Return True if the current thread is a worker, or runs an event loop that makes calls or is about to.

        A thread with the context of a call counts as that call, which may be waiting for it. Any thread.
        """
        if threading.current_thread() in self._alive.values() or self._dispatcher in calling.get(()):
            return True
        return runs_here(tuple(self._dispatcher.boxes.values()))

    def _work(self, number: int) -> None:
        dispatcher, me = self._dispatcher, threading.current_thread()
        worker = Worker(MAX_TURNS if self._count == 1 else 1)
        self.calls.callers.add(worker)
        while self._alive.get(number) is me:
            if not dispatcher.next(worker):
                with dispatcher.lock:
                    if not dispatcher.turns.running:  # otherwise it was started again meanwhile
                        self._alive.pop(number, None)
                continue
            began, count = perf_counter(), len(worker.boxes)
            for box in tuple(worker.boxes):
                worker.box = box
                if count > 1:
                    box.held = 0
                hand, sub = box.hand, box.sub
                try:
                    if type(hand) is Run and sub is not None and not sub.awaits:
                        worker.delivered += self._call(box, hand, sub)
                    else:
                        self._turn(worker, box, hand, sub)
                except BaseException as error:  # not from user code, whose errors are caught
                    log(CRITICAL, "an unexpected error in a worker, which goes on", error=error)
            seconds = (perf_counter() - began) / count
            if seconds > SLOW:
                box.turn = max(1, box.turn // 2)
            elif seconds < QUICK and box.turn < MAX_TURN:
                box.turn = min(MAX_TURN, box.turn * 2)
            worker.box = None
            del box, hand, sub  # a waiting worker keeps nothing alive
        self.calls.callers.discard(worker)
        dispatcher.turns.bell.ring()

    def _turn(self, worker: Worker, box: Mailbox, hand: Entry | None, sub: Subscription | None) -> None:
        """Handle a hand that is void, for an event loop, or a call of `on_listen`."""
        if hand is None or sub is None:
            box.rest = hand  # void
        elif awaits(sub, hand):
            Batch(self._dispatcher, self.calls, box, hand, sub).ship()
            worker.boxes.remove(box)
        elif isinstance(hand, ListenCall):
            self._listen(box, hand, sub)

    def _call(self, box: Mailbox, run: Run, subscription: Subscription) -> int:
        """Call the subscriber for each notification in hand; return how many calls returned."""
        sub: Subscription | None = subscription
        calls, id, channel = self.calls, box.id, run.channel
        notifications, payloads = run.notifications, run.payloads
        decode, fn, delivered = calls.decode, subscription.fn, 0
        for place in range(run.start, run.stop):
            if box.sub is not sub:
                sub = box.sub
                if sub is None:
                    break
                if sub.awaits:
                    box.rest = run.part(place, run.stop)
                    break
                fn = sub.fn
            notification = notifications[place]
            payload = UNKNOWN
            box.began = monotonic()
            try:
                if payloads is None:
                    payload = decode(notification[1])
                else:
                    payload = payloads[place]
                    if payload is UNKNOWN:
                        payload = calls.payload(run, place)
                    if payload is FAILED:
                        continue
                result = fn(id, channel, payload, notification[2])
                if result is not None:
                    refuse_coroutine(result)
                delivered += 1
            except BaseException as error:
                if payload is UNKNOWN:
                    calls.undecodable(run, place, error)
                else:
                    calls.failed(box, channel, error)
        box.began = 0.0
        return delivered

    def _listen(self, box: Mailbox, call: ListenCall, sub: Subscription) -> None:
        """Call `on_listen`; if it fails, leave the call in `rest` for later."""
        box.began = monotonic()
        try:
            if sub.on_listen is not None:
                refuse_coroutine(sub.on_listen(box.id, call.channel, call.gap))
        except BaseException as error:
            self.calls.failed(box, call.channel, error)
            box.rest = call
        box.began = 0.0


def refuse_coroutine(result: object) -> None:
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("the callback returned a coroutine: subscribe the coroutine function itself")
