"""Streams: notifications to be taken instead of calls (guarantee 16).

A stream is an executor whose readers take from its mailbox themselves, on their own threads or event loops.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from ..errors import StreamClosed
from ..events import Event, Listening, Notification
from ..flag import Bell
from ..registry import Registry, Step, Subscription, close_stream
from ..validation import check_timeout
from .coverage import ListenCall
from .mailbox import FAILED, Mailbox, Run

if TYPE_CHECKING:
    from .calls import Calls
    from .dispatcher import Dispatcher


class Puller(Bell):
    """What the registry and a mailbox know of a stream: its readers, so that a forgotten stream is collected.

    It is the stream's id, too, where that has no other.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def notice(self) -> None:
        """Something was put into the mailbox, or thrown away. Without the lock."""
        self.ring()

    def called(self, *_: object) -> None:
        """Stands in the registry in place of callbacks; nothing calls it."""


class Home(Protocol):
    """The notifier, as its streams see it."""

    def _delivery(self) -> tuple[Dispatcher, Calls]:
        """What the mailbox is in, and what decodes; others in a forked child."""

    def _release(self, id: Hashable, puller: Puller) -> None:
        """Unsubscribe the stream, without waiting for the server. Any thread."""

    def _forget(self, id: Hashable, puller: Puller) -> None:
        """The same, soon. In a finalizer: takes no lock."""


class _Hand:
    """A run that has been taken out of the mailbox, and the places that no reader has had."""

    __slots__ = ("box", "places", "run")

    def __init__(self, box: Mailbox, run: Run) -> None:
        self.box, self.run = box, run
        self.places = iter(range(run.start, run.stop))  # one operation of C gives each to one reader

    @property
    def is_void(self) -> bool:
        return self.box.hand is not self.run or self.box.sub is None


class Pull:
    """Takes events out of a stream's mailbox. Any number of threads and event loops."""

    def __init__(self, home: Home, id: Hashable, channels: tuple[str, ...], bell: Puller) -> None:
        self._home, self._id, self._channels, self._bell = home, id, channels, bell
        self._hand: _Hand | None = None
        self.closed = False

    @property
    def is_over(self) -> bool:
        """Whether nothing comes any more: the stream is closed, or the notifier stopped."""
        return self.closed or not self._home._delivery()[0].turns.running

    @property
    def has_news(self) -> bool:
        """Whether something waits, as far as can be told without the lock."""
        box = self._home._delivery()[0].boxes.get(self._id)
        return box is not None and (bool(box.entries) or box.hand is not None)

    def next(self) -> Event | None:
        """The next event; None if nothing waits."""
        dispatcher, calls = self._home._delivery()
        while not self.closed:
            hand = self._hand
            place = None if hand is None or hand.is_void else next(hand.places, None)
            if hand is None or place is None:
                with dispatcher.lock:
                    event = self._take(dispatcher, hand)
                if self._hand is hand:
                    return event
                if event is not None:
                    return event
                continue
            run = hand.run
            last = place + 1 == run.stop
            if last:  # before it is decoded, so that other readers do not wait for that
                with dispatcher.lock:
                    self._end(dispatcher, hand)
                dispatcher.follow_up([hand.box])
            payload = calls.payload(run, place)
            if payload is not FAILED:
                return Notification(run.channel, payload, run.notifications[place][2])
        return None

    def _take(self, dispatcher: Dispatcher, before: _Hand | None) -> Listening | None:
        """Take the next run in hand, or return what is told by calls of `on_listen`. Under the lock."""
        if self._hand is not before:
            return None  # another reader was first
        if before is not None:
            self._end(dispatcher, before)
        box = dispatcher.boxes.get(self._id)
        calls = list[ListenCall]()
        while box is not None and (not calls or (box.entries and isinstance(box.entries[0], ListenCall))):
            if not box.take():
                break
            if isinstance(box.hand, Run):
                self._hand = _Hand(box, box.hand)
                break
            if box.hand is not None:
                calls.append(box.hand)
            dispatcher.turns.end(box)
        if not calls:
            if self._hand is before:
                dispatcher.turns.readers.add(self._bell)  # also without a mailbox, while all is muted
            return None
        names = {call.channel for call in calls}
        told = tuple(name for name in self._channels if name in names)
        return Listening(told, tuple(call.gap for call in calls if call.gap is not None))

    def _end(self, dispatcher: Dispatcher, hand: _Hand) -> None:
        if hand.box.hand is hand.run:
            if hand.box.sub is not None:
                dispatcher.turns.delivered += hand.run.size
            dispatcher.turns.end(hand.box)


class Stream:
    """Notifications on some channels, to be taken. Made by `Notifier.listen`.

    `for event in stream:`, or `get`, from any threads: each event goes to one of them. An event is a `Notification`
    or `Listening`, which comes first, and again after each stretch in which some may have been missed. A payload is
    decoded by the reader; one that can't be decoded is logged, reported as `decode_failed`, and skipped.

    A stream is a subscriber: `subscribers()` shows it, and it can be muted, by `id` or by itself. `max_pending`
    notifications wait for its readers at most; then the oldest are dropped, and a `Listening` with the gap stands in
    their place. `with` closes it, and so does Python when nothing refers to it any more.
    """

    def __init__(self, home: Home, channels: tuple[str, ...], id: Hashable) -> None:
        self.channels: tuple[str, ...] = channels
        self._home = home
        self.bell: Puller = Puller(f"<stream of {', '.join(map(repr, channels))}>")
        self.key: Hashable = self.bell if id is None else id  # its id in the registry
        self.pull: Pull = Pull(home, self.key, channels, self.bell)

    @property
    def id(self) -> Hashable:
        """What it is called in `subscribers()`: the id that was given, or the stream itself."""
        return self if self.key is self.bell else self.key

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.bell  # which stands in the registry, lest the stream stays alive

    def __hash__(self) -> int:
        return hash(self.bell)

    def __repr__(self) -> str:
        return f"{self.bell!r}{' (closed)' if self.pull.closed else ''}"

    def get(self, timeout: float | None = None) -> Event:
        """The next event. Waits for it, for `timeout` seconds at most.

        Raises `TimeoutError`, and `StreamClosed` where nothing comes any more: the stream is closed, or the notifier
        stopped. After `start()` events come again.
        """
        pull, deadline = self.pull, inf if timeout is None else monotonic() + check_timeout(timeout)
        while True:
            over = pull.is_over
            event = pull.next()
            if event is not None:
                return event
            if over:
                raise self.over()
            seconds = None if deadline == inf else deadline - monotonic()
            if not self.bell.wait_for(lambda: pull.has_news or pull.is_over, seconds):
                raise self.late(timeout)

    def over(self) -> StreamClosed:
        return StreamClosed(f"{self!r}: {'it is closed' if self.pull.closed else 'the notifier is stopped'}")

    def late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{self!r}: nothing came within {timeout:g} seconds")

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        try:
            return self.get()
        except StreamClosed:
            raise StopIteration from None

    def close(self) -> None:
        """End it. Nothing comes from now on, and its readers' loops end. Does not wait for the server. Any thread."""
        if not self.pull.closed:
            self._home._release(self.key, self.bell)
            self.pull.closed = True
            self.bell.ring()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        pull = getattr(self, "pull", None)
        if pull is not None and not pull.closed:
            self._home._forget(self.key, self.bell)

    def subscription(self, latest: bool) -> Subscription:
        """What the registry has of it."""
        called = self.bell.called
        return Subscription(called, False, called, latest, pulled=self.bell)

    def closing(self, reg: Registry) -> Step:
        """The step that ends it."""
        return close_stream(reg, self.key, self.bell)
