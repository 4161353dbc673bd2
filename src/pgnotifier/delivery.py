"""Mailboxes and the workers that drain them: the only caller of user code (contract 4 and 8).

The listener thread posts whole batches; one worker at a time holds a mailbox, so that one subscriber id never
runs on two at once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from time import monotonic
from typing import Any

from . import registry
from .registry import EMPTY, SYSCHAN, Callback, Registry

logger = logging.getLogger("pgnotifier")

SLICE = 256  # notifications of one mailbox before another has its turn

_UNDECODED: Any = object()
_FAILED: Any = object()


class Message:
    """One notification; its payload is decoded once, by the first worker that needs it."""

    __slots__ = ("channel", "lock", "pid", "text", "value")

    def __init__(self, channel: str, text: str, pid: int, lock: Any, value: Any = _UNDECODED) -> None:
        self.channel, self.text, self.pid, self.lock, self.value = channel, text, pid, lock, value


class Mailbox:
    """What waits for one id. `claimed` under the lock of Delivery: it is in the ready queue or on a worker."""

    __slots__ = ("claimed", "fns", "id", "items", "seen")

    def __init__(self, id: Hashable) -> None:
        self.id = id
        self.items: deque[Message] = deque()
        self.claimed = False
        self.seen: Registry = EMPTY  # the registry that `fns` was read from
        self.fns: dict[str, Callback | None] = {}


class Delivery:
    """`workers` threads, started with `start` and ended with `stop`."""

    def __init__(self, workers: int, decode: Callable[[str], Any], reg: Registry, fatal: Callable[[], None]) -> None:
        self._decode = decode
        self._fatal = fatal
        self.delivered = 0
        self.failed = 0
        self._changed = threading.Condition()
        self._boxes: dict[Hashable, Mailbox] = {}
        self._ready: deque[Mailbox] = deque()
        self._running = True
        self._decoding = tuple(threading.Lock() for _ in range(8))
        self._next_lock = 0
        self._view = reg
        self._routes: dict[str, tuple[Any, tuple[Mailbox, ...]]] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"pgnotifier-worker-{number}", daemon=True)
            for number in range(1, workers + 1)
        ]
        for thread in self._threads:
            thread.start()

    def publish(self, reg: Registry) -> None:
        """From now on calls follow `reg`; ignored once `stop` was called."""
        with self._changed:
            if self._running:
                self._view = reg

    def stop(self, event: dict[str, Any], timeout: float) -> None:
        """No call but of SYSCHAN's subscribers with `event` begins after this, and none after it returned.

        Running ones may finish, for `timeout` seconds at most. On one of the workers it does not wait.
        """
        with self._changed:
            if not self._running:
                return
            self._view = registry.remove_channels(self._view, [c for c in self._view.channels if c != SYSCHAN])
        self.post_event(event)
        with self._changed:
            self._running = False
            self._changed.notify_all()
        if self.on_worker():
            return
        deadline = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        self._view = EMPTY

    def on_worker(self) -> bool:
        """Whether the calling thread is one of these workers, that is, inside a callback."""
        return threading.current_thread() in self._threads

    def pending(self) -> int:
        return sum(len(box.items) for box in tuple(self._boxes.values()))

    def post(self, batch: Iterable[Any]) -> None:
        """Hand over what has arrived. On the listener thread; never waits for user code."""
        view = self._view
        boxes: dict[Mailbox, None] = {}
        for n in batch:
            entry = view.channels.get(n.channel)
            cached = self._routes.get(n.channel)
            if cached is None or cached[0] is not entry:
                cached = (entry, tuple(self._box(id) for id in registry.audience(entry)))
                self._routes[n.channel] = cached
            if cached[1]:
                self._next_lock = (self._next_lock + 1) % len(self._decoding)
                message = Message(n.channel, n.payload, n.pid, self._decoding[self._next_lock])
                for box in cached[1]:
                    box.items.append(message)
                    boxes[box] = None
        self._wake(boxes)

    def post_event(self, event: dict[str, Any]) -> None:
        """Put an event of the notifier's own before SYSCHAN's subscribers: pid 0. From any thread."""
        entry = self._view.channels.get(SYSCHAN)
        message = Message(SYSCHAN, "", 0, None, event)
        boxes = [self._box(id) for id in registry.audience(entry)]
        for box in boxes:
            box.items.append(message)
        self._wake(boxes)

    def _box(self, id: Hashable) -> Mailbox:
        return self._boxes.get(id) or self._boxes.setdefault(id, Mailbox(id))

    def _wake(self, boxes: Iterable[Mailbox]) -> None:
        with self._changed:
            if not self._running:
                return  # the workers may be gone
            for box in boxes:
                if not box.claimed:
                    box.claimed = True
                    self._ready.append(box)
            self._changed.notify(len(self._ready))

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._running and not self._ready:
                    self._changed.wait()
                if not self._ready:
                    return
                box = self._ready.popleft()
            delivered = failed = 0
            items = box.items
            for _ in range(min(SLICE, len(items))):
                try:
                    outcome = self._call(box, items.popleft())
                except (SystemExit, KeyboardInterrupt) as error:
                    logger.critical("subscriber %r raised %s: stopping", box.id, type(error).__name__)
                    outcome = False
                    self._fatal()
                delivered += outcome is True
                failed += outcome is False
            with self._changed:
                self.delivered += delivered
                self.failed += failed
                box.claimed = bool(items)
                if box.claimed:
                    self._ready.append(box)

    def _call(self, box: Mailbox, message: Message) -> bool | None:
        """Whether the callback succeeded; None where there was none to call."""
        view = self._view
        if view is not box.seen:
            box.fns, box.seen = {}, view
        channel = message.channel
        if channel in box.fns:
            fn = box.fns[channel]
        else:
            fn = box.fns[channel] = registry.callback(view, box.id, channel)
        if fn is None:
            return None
        value = message.value
        if value is _UNDECODED:
            value = self._decode_once(message)
        if value is _FAILED:
            return False
        try:
            fn(box.id, channel, value, message.pid)
        except Exception as error:
            logger.exception("subscriber %r failed on channel %r", box.id, channel)
            if channel != SYSCHAN:
                self.post_event({"event": "callback_failed", "id": box.id, "channel": channel, "error": repr(error)})
            return False
        return True

    def _decode_once(self, message: Message) -> Any:
        with message.lock:
            if message.value is _UNDECODED:
                try:
                    message.value = self._decode(message.text)
                except Exception as error:
                    message.value = _FAILED
                    logger.exception("cannot decode %r on channel %r", message.text, message.channel)
                    if message.channel != SYSCHAN:
                        self.post_event(
                            {
                                "event": "decode_failed",
                                "channel": message.channel,
                                "payload": message.text,
                                "error": repr(error),
                            }
                        )
            return message.value
