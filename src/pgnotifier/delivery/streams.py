"""Streams: subscribers whose readers take notifications, instead of being called (guarantee 16).

A stream is an executor. Its readers take from its mailbox on their own threads or event loops.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from ..errors import StreamClosed
from ..events import Event, Listening, Notification
from ..flag import Bell
from ..registry import Keyed, Registry, Step, Subscription, close_stream
from ..validation import check_timeout
from .coverage import ListenCall
from .mailbox import FAILED, Mailbox, Run

if TYPE_CHECKING:
    from .calls import Calls
    from .dispatcher import Dispatcher


class Puller(Bell):
    """Stands in the registry for a stream, so that Python can collect the stream. Its id if it has no other."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.over: bool = False  # closed, or left without channels: nothing comes any more

    def __repr__(self) -> str:
        return self._name

    def notice(self) -> None:
        self.ring()

    def called(self, *_: object) -> None:
        """Stand in the registry in place of callbacks. Never called."""


class StreamNotifier(Protocol):
    """The methods of a notifier that its streams call."""

    def _delivery(self) -> tuple[Dispatcher, Calls]:
        """Return the dispatcher and the decoder of now; a forked child has others."""

    def _release(self, id: Hashable, puller: Puller) -> None:
        """Unsubscribe the stream, without waiting for the server. Any thread."""

    def _forget(self, id: Hashable, puller: Puller) -> None:
        """Have the listener unsubscribe the stream soon. In a finalizer: takes no lock."""


class _Hand:
    """A run that was taken out of the mailbox, and the places in it that no reader has taken."""

    __slots__ = ("box", "calls", "dispatcher", "last", "places", "run")

    def __init__(self, dispatcher: Dispatcher, calls: Calls, box: Mailbox, run: Run) -> None:
        self.dispatcher, self.calls, self.box, self.run = dispatcher, calls, box, run
        self.places = iter(range(run.start, run.stop))  # one operation of C gives each to one reader
        self.last = run.stop - 1


class Pull:
    """Takes events out of a stream's mailbox, on any number of threads and event loops."""

    def __init__(self, notifier: StreamNotifier, id: Hashable, puller: Puller, channels: tuple[str, ...]) -> None:
        self._notifier, self._id, self._puller, self._channels = notifier, id, puller, channels
        self._hand: _Hand | None = None

    @property
    def is_over(self) -> bool:
        """True if nothing comes any more: the stream is closed, or the notifier stopped."""
        return self._puller.over or not self._notifier._delivery()[0].turns.running

    @property
    def has_news(self) -> bool:
        """True if something seems to wait. Takes no lock."""
        box = self._box(self._notifier._delivery()[0])
        return box is not None and (bool(box.entries) or box.hand is not None)

    def _box(self, dispatcher: Dispatcher) -> Mailbox | None:
        box = dispatcher.boxes.get(self._id)
        return box if box is not None and box.owner is self._puller else None  # another may have the id by now

    def next(self) -> Event | None:
        """Return the next event; None if nothing waits. Any thread, without the lock."""
        while not self._puller.over:
            hand = self._hand
            place = None
            if hand is not None and hand.box.hand is hand.run and hand.box.sub is not None:  # it is not void
                place = next(hand.places, None)
            if hand is not None and place is not None:
                run = hand.run
                payload = hand.calls.own_payload(run, place)
                if payload is FAILED or place == hand.last:
                    self._settle(hand, place, payload is FAILED)
                    if payload is FAILED:
                        continue
                return tuple.__new__(Notification, (run.channel, payload, run.notifications[place][2]))
            dispatcher, calls = self._notifier._delivery()
            # Nothing waits, or a signal handler or finalizer has interrupted the code that holds the lock.
            if (hand is None and not self.has_news) or dispatcher.lock._is_owned():
                return None
            with dispatcher.lock:
                event = self._take(dispatcher, calls, hand)
            if hand is not None or event is not None:
                dispatcher.follow_up([] if hand is None else [hand.box])
            if event is not None or self._hand is None:
                return event
        return None

    def _take(self, dispatcher: Dispatcher, calls: Calls, before: _Hand | None) -> Listening | None:
        """Take the next run into the hand, or return the `Listening` of calls of `on_listen`. Under the lock."""
        if self._hand is not before:
            return None  # another reader was first
        if before is not None:
            self._end(dispatcher, before)
        box = self._box(dispatcher)
        told = list[ListenCall]()
        while box is not None and (not told or (box.entries and isinstance(box.entries[0], ListenCall))):
            if box.hand is None and not box.take():  # Ctrl-C may have left something in hand
                break
            if isinstance(box.hand, Run):
                self._hand = _Hand(dispatcher, calls, box, box.hand)
                box.places = self._hand.places
                break
            if box.hand is not None:
                told.append(box.hand)
            dispatcher.turns.end(box)
        if not told:
            return None
        names = {call.channel for call in told}
        channels = tuple(name for name in self._channels if name in names)
        return Listening(channels, tuple(call.gap for call in told if call.gap is not None))

    def _settle(self, hand: _Hand, place: int, failed: bool) -> None:
        """End the turn after the last of a run; count a payload that can't be decoded. Without the lock."""
        dispatcher = hand.dispatcher
        if not dispatcher.lock._is_owned():  # otherwise `_take` ends it
            with dispatcher.lock:
                hand.box.undecoded += failed
                if place + 1 == hand.run.stop:
                    self._end(dispatcher, hand)
            dispatcher.follow_up([hand.box])

    def _end(self, dispatcher: Dispatcher, hand: _Hand) -> None:
        """End the turn, and keep alive nothing that was read. Under the lock."""
        if hand.box.hand is hand.run:
            dispatcher.turns.end(hand.box)
        if self._hand is hand:
            self._hand = None


class Stream(Keyed):
    """Notifications on some channels, to be taken. Made by `Notifier.listen`.

    Read it with `for event in stream:` or `get`, on any threads: each event goes to one of them. An event is a
    `Notification` or a `Listening`. `Listening` comes first, and again after each period in which notifications may
    have been missed. The reader decodes a payload; one that can't be decoded is logged, reported as `decode_failed`,
    and skipped.

    A stream is a subscriber: `subscribers()` shows it, and it can be muted, by `id` or by itself. At most
    `max_pending` notifications wait for its readers; beyond that the oldest are dropped, and a `Listening` with the
    gap takes their place. `with` closes it, and so does Python when nothing refers to it any more.
    """

    def __init__(self, notifier: StreamNotifier, channels: tuple[str, ...], id: Hashable) -> None:
        self.channels: tuple[str, ...] = channels
        self._notifier = notifier
        self.bell: Puller = Puller(f"<stream of {', '.join(map(repr, channels))}>")
        self.key: Hashable = self.bell if id is None else id  # its id in the registry
        self.pull: Pull = Pull(notifier, self.key, self.bell, channels)

    @property
    def closed(self) -> bool:
        """True if it was closed, or has none of its channels any more."""
        return self.bell.over

    @property
    def id(self) -> Hashable:
        """Its id in `subscribers()`: the id that was given, or the stream itself."""
        return self if self.key is self.bell else self.key

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.bell  # the registry has the `bell`, which keeps no stream alive

    def __hash__(self) -> int:
        return hash(self.bell)

    def __repr__(self) -> str:
        return f"{self.bell!r}{' (closed)' if self.closed else ''}"

    def get(self, timeout: float | None = None) -> Event:
        """Return the next event; wait at most `timeout` seconds (None: no limit). Any thread.

        Raises `TimeoutError`, and `StreamClosed` if nothing comes any more: the stream is closed, or the notifier
        stopped. After `start()` events come again. In a signal handler it may raise `TimeoutError` at once.
        """
        pull, deadline = self.pull, None
        limit = inf if timeout is None else check_timeout(timeout)
        while (event := self.poll()) is None:
            if self._notifier._delivery()[0].lock._is_owned():
                raise TimeoutError(f"{self!r}: a signal handler that interrupts the notifier can't wait for events")
            deadline = deadline or monotonic() + limit
            seconds = None if deadline == inf else deadline - monotonic()
            if not self.bell.wait_for(lambda: pull.has_news or pull.is_over, seconds):
                raise self.late(timeout)
        return event

    def poll(self) -> Event | None:
        """Return the next event; None if nothing waits. Raises `StreamClosed`."""
        event = self.pull.next()
        if event is None and self.pull.is_over and (event := self.pull.next()) is None:  # else it came before the end
            raise self.over()
        return event

    def over(self) -> StreamClosed:
        return StreamClosed(f"{self!r}: {'it is closed' if self.closed else 'the notifier is stopped'}")

    def late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{self!r}: nothing came within {timeout:g} seconds")

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            return self.pull.next() or self.get()
        except StreamClosed:
            raise StopIteration from None

    def close(self) -> None:
        """Close the stream: nothing comes any more, and its readers' loops end. Any thread. Waits for nothing."""
        if not self.closed:
            self._notifier._release(self.key, self.bell)
            self.bell.over = True
            self.bell.ring()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "pull") and not self.closed:
            self._notifier._forget(self.key, self.bell)

    def subscription(self, latest: bool) -> Subscription:
        """Return its subscription, for the registry."""
        return Subscription(self.bell.called, False, self.bell.called, latest, pulled=self.bell)

    def closing(self, reg: Registry) -> Step:
        """Return `reg` without the stream: a step."""
        return close_stream(reg, self.key, self.bell)
