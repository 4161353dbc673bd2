"""Guarantees 3, 4, 5, 6 and 12: any sequence of calls, against a model made of plain dicts, on a real server."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from itertools import count
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from conftest import until
from pgnotifier import InvalidChannel, Notifier, UnknownChannel, UnknownSubscriber

SYSCHAN = Notifier.SYSCHAN
CHANNELS = ["a", "b", 'C "q"', "é" * 31, SYSCHAN]
IDS: list[Hashable] = [1, 1.0, -1, -2, "one", ("t", 1), None]  # 1 == 1.0, and -1 and -2 have the same hash
SENTINEL = "always subscribed"
BAD_NAMES: list[Any] = ["", "x" * 64, "é" * 32, "a\0b", "\ud800", 7, None, b"a"]


class Recorder:
    """A callback; each is equal only to itself."""

    def __init__(self, calls: list[tuple[Any, ...]], number: int) -> None:
        self.calls, self.number = calls, number

    def __call__(self, *args: Any) -> None:
        self.calls.append((self, *args))

    def __repr__(self) -> str:
        return f"fn{self.number}"


class Model:
    """Guarantee 3. `subs[channel][id]` is `[fn, mute, serial]`, and `listened` what the server listens to."""

    def __init__(self) -> None:
        self.mute: dict[str, bool] = {}
        self.subs: dict[str, dict[Hashable, list[Any]]] = {}
        self.listened: set[str] = set()
        self.running = True
        self.serial = count()

    def valid(self) -> set[str]:
        return {c for c in self.mute if c != SYSCHAN and self.unmuted(c)}

    def unmuted(self, channel: str) -> dict[Hashable, Any]:
        """Who would be called on a channel that is listened to: `{id: fn}`."""
        if self.mute.get(channel, True):
            return {}
        return {id: fn for id, (fn, mute, _) in self.subs[channel].items() if not mute}

    def audience(self, channel: str) -> dict[Hashable, Any]:
        """Who is called for a notification on `channel` now."""
        return self.unmuted(channel) if self.active(channel) else {}

    def active(self, channel: str) -> bool:
        return self.running and (channel == SYSCHAN or channel in self.listened)

    def apply(self) -> None:
        self.listened = self.valid() if self.running else set()

    def ids(self) -> dict[Hashable, list[str]]:
        found: dict[Hashable, list[str]] = {}
        for channel, subs in self.subs.items():
            for id in subs:
                found.setdefault(id, []).append(channel)
        return found

    def add(self, channel: str) -> None:
        self.mute.setdefault(channel, False)
        self.subs.setdefault(channel, {})

    def subscribe(self, id: Hashable, channel: str, fn: Any) -> None:
        self.add(channel)
        was_muted = self.subs[channel].get(id, [None, False])[1]
        self.subs[channel][id] = [fn, was_muted, next(self.serial)]

    def channels_dict(self) -> dict[str, Any]:
        return {
            c: {
                "mute": self.mute[c],
                "active": self.active(c),
                "subscribers": {id: {"fn": fn, "mute": mute} for id, (fn, mute, _) in subs.items()},
            }
            for c, subs in self.subs.items()
        }

    def subscribers_dict(self) -> dict[Hashable, Any]:
        return {
            id: {
                "fn": max((self.subs[c][id] for c in names), key=lambda sub: sub[2])[0],
                "channels": {
                    c: {
                        "fn": self.subs[c][id][0],
                        "active": self.active(c),
                        "mute": self.mute[c],
                        "sub_mute": self.subs[c][id][1],
                    }
                    for c in names
                },
            }
            for id, names in self.ids().items()
        }


good_names = st.sampled_from(CHANNELS)
Shape = Callable[[list[Any]], Any]


def bare(names: list[Any]) -> Any:
    return names[0] if len(names) == 1 else names


shapes = st.sampled_from([bare, list, tuple, set, iter, dict.fromkeys])


class Calls(RuleBasedStateMachine):
    """Each step calls the notifier and the model, and then both must look the same."""

    patience = 10.0  # seconds

    def __init__(self, server: str, sender: psycopg.Connection[Any]) -> None:
        super().__init__()
        self.sender = sender
        self.sender_pid = sender.info.backend_pid
        self.model = Model()
        self.calls: list[tuple[Any, ...]] = []
        self.expected: list[tuple[Any, ...]] = []
        self.numbers = count()
        self.n = Notifier(server)
        self.pid = self.n.status()["pid"]
        self.counters: dict[str, int] = {}
        self.sentinel = Recorder(self.calls, next(self.numbers))

    def teardown(self) -> None:
        self.n.stop()
        assert by_id(self.heard()) == by_id(self.expected)

    def wait_until(self, condition: Callable[[], object]) -> None:
        try:
            until(condition, self.patience)
        except AssertionError:
            type(self).patience = 0.5  # it has failed: from now on Hypothesis only makes the failure small
            raise

    def heard(self) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[4] != 0]

    def events(self) -> list[tuple[Any, ...]]:
        return [(fn, id, payload["event"]) for fn, id, _, payload, pid in self.calls if pid == 0]

    # -- the registry ---------------------------------------------------------------------------------------

    @rule(names=st.lists(good_names, max_size=3), shape=shapes)
    def add_channels(self, names: list[str], shape: Shape) -> None:
        self.n.add_channels(shape(names))
        for c in names:
            self.model.add(c)

    @rule(names=st.lists(good_names, max_size=2), shape=shapes, autorun=st.booleans())
    def remove_channels(self, names: list[str], shape: Shape, autorun: bool) -> None:
        self.n.remove_channels(shape(names), autorun)
        for c in names:
            self.model.mute.pop(c, None)
            self.model.subs.pop(c, None)
        if autorun:
            self.model.apply()

    @rule(id=st.sampled_from(IDS), channel=good_names, autorun=st.booleans())
    def subscribe(self, id: Hashable, channel: str, autorun: bool) -> None:
        fn = Recorder(self.calls, next(self.numbers))
        self.n.subscribe(id, channel, fn, autorun)
        self.model.subscribe(id, channel, fn)
        if autorun:
            self.model.apply()

    @rule(channel=good_names)
    def subscribe_everybody(self, channel: str) -> None:
        for id in IDS:
            self.subscribe(id, channel, True)

    @precondition(lambda self: self.model.running)
    @rule(id=st.sampled_from(IDS), channel=good_names)
    def leave_something_pending(self, id: Hashable, channel: str) -> None:
        if channel in self.model.listened:
            self.remove_channels([channel], list, autorun=False)
        else:
            self.subscribe(id, channel, autorun=False)

    @rule(id=st.sampled_from(IDS), channel=good_names, autorun=st.booleans())
    def unsubscribe(self, id: Hashable, channel: str, autorun: bool) -> None:
        self.n.unsubscribe(id, channel, autorun)
        self.model.subs.get(channel, {}).pop(id, None)
        if autorun:
            self.model.apply()

    @rule(names=st.lists(good_names, max_size=2), shape=shapes, mute=st.booleans())
    def mute_channels(self, names: list[str], shape: Shape, mute: bool) -> None:
        method = self.n.mute_channels if mute else self.n.unmute_channels
        if set(names) - self.model.mute.keys():
            with pytest.raises(UnknownChannel):
                method(shape(names))
            return
        method(shape(names))
        for c in names or [c for c in self.model.mute if c != SYSCHAN]:
            self.model.mute[c] = mute
        self.model.apply()

    @rule(mute=st.booleans())
    def mute_all_channels(self, mute: bool) -> None:
        (self.n.mute_channels if mute else self.n.unmute_channels)()
        self.model.mute.update((c, mute) for c in self.model.mute if c != SYSCHAN)
        self.model.apply()

    @rule(id=st.sampled_from(IDS), names=st.lists(good_names, max_size=2), shape=shapes, mute=st.booleans())
    def mute_subscriber(self, id: Hashable, names: list[str], shape: Shape, mute: bool) -> None:
        method = self.n.mute_subscriber if mute else self.n.unmute_subscriber
        errors: list[type[Exception]] = []
        if id not in self.model.ids() or any(id not in self.model.subs.get(c, [id]) for c in names):
            errors.append(UnknownSubscriber)
        if set(names) - self.model.mute.keys():
            errors.append(UnknownChannel)
        if errors:
            with pytest.raises(tuple(errors)):
                method(id, shape(names))
            return
        method(id, shape(names))
        for c in names or self.model.ids()[id]:
            self.model.subs[c][id][1] = mute
        self.model.apply()

    @rule(id=st.sampled_from(IDS), channel=good_names, mute=st.booleans())
    def mute_subscriber_on_one(self, id: Hashable, channel: str, mute: bool) -> None:
        if id in self.model.subs.get(channel, {}):
            (self.n.mute_subscriber if mute else self.n.unmute_subscriber)(id, channel)
            self.model.subs[channel][id][1] = mute
            self.model.apply()

    @rule(data=st.data(), before=st.lists(good_names, max_size=2), bad=st.sampled_from(BAD_NAMES), shape=shapes)
    def bad_names_are_refused(self, data: st.DataObject, before: list[str], bad: Any, shape: Shape) -> None:
        """Whatever good ones stand beside them; the invariants say that nothing has changed."""
        n, names = self.n, shape([*before, bad])
        calls: dict[str, Callable[[], Any]] = {
            "add_channels": lambda: n.add_channels(names),
            "remove_channels": lambda: n.remove_channels(names),
            "subscribe": lambda: n.subscribe(1, bad, print),
            "unsubscribe": lambda: n.unsubscribe(1, bad),
            "mute_channels": lambda: n.mute_channels(names),
            "unmute_channels": lambda: n.unmute_channels(names),
            "mute_subscriber": lambda: n.mute_subscriber(1, names),
            "unmute_subscriber": lambda: n.unmute_subscriber(1, names),
            "notify": lambda: n.notify(bad),
        }
        method = data.draw(st.sampled_from(sorted(calls)))
        with pytest.raises(InvalidChannel if isinstance(bad, str) else TypeError):
            calls[method]()

    # -- the life cycle -------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.running)
    @rule()
    def stop(self) -> None:
        audience = self.model.audience(SYSCHAN)
        seen = len(self.events())
        self.n.stop()
        assert {(fn, id) for fn, id, event in self.events()[seen:] if event == "stopped"} == {
            (fn, id) for id, fn in audience.items()
        }
        self.model.running = False
        self.model.apply()

    @precondition(lambda self: not self.model.running)
    @rule()
    def start_again(self) -> None:
        self.start(restart=False)

    @precondition(lambda self: self.model.running and self.model.listened != self.model.valid())
    @rule(restart=st.booleans())
    def apply_what_is_pending(self, restart: bool) -> None:
        self.start(restart)

    @rule(restart=st.booleans())
    def start(self, restart: bool) -> None:
        seen, was_running = len(self.events()), self.model.running
        (self.n.restart if restart else self.n.start)()
        self.model.running = True
        self.model.apply()
        if not was_running:
            self.pid = self.n.status()["pid"]
            wanted = {(fn, id, "connected") for id, fn in self.model.audience(SYSCHAN).items()}
            self.wait_until(lambda: wanted <= set(self.events()[seen:]))

    # -- after each step ------------------------------------------------------------------------------------

    @initialize()
    def subscribe_the_sentinel(self) -> None:
        self.n.subscribe("sentinel", SENTINEL, self.sentinel)
        self.model.subscribe("sentinel", SENTINEL, self.sentinel)
        self.model.apply()

    @invariant()
    def the_right_ones_are_called(self) -> None:
        """One notification on every channel; the last one is heard, and says that the others have passed.

        Who is called is decided just before the call: without that, a subscriber of the next step could be called
        for a notification of this one, and rightly so.
        """
        names = [*CHANNELS, "nobody's", SYSCHAN]
        if self.model.audience(SENTINEL):
            names.append(SENTINEL)
        elif self.model.running and not self.model.audience(SYSCHAN):
            return
        payloads = [next(self.numbers) for _ in names]
        self.sender.execute(
            "select pg_notify(c, p) from unnest(%s::text[], %s::text[]) as sent (c, p)",
            (names, [str(p) for p in payloads]),
        )
        for c, payload in zip(names, payloads, strict=True):
            for id, fn in self.model.audience(c).items():
                self.expected.append((fn, id, c, payload, self.sender_pid))
        self.wait_until(lambda: len(self.heard()) >= len(self.expected) and self.n.status()["pending"] == 0)
        assert by_id(self.heard()) == by_id(self.expected)

    @invariant()
    def looks_like_the_model(self) -> None:
        n, m = self.n, self.model
        assert n.channels() == m.channels_dict()
        assert n.subscribers() == m.subscribers_dict()
        assert n.active_channels() == sorted(m.listened)
        assert n.is_running() is m.running
        self.compare_mute_states(set(m.mute))
        for names in ([], ["b"], ["a", SYSCHAN], ["nobody's", 'C "q"', "é" * 31]):
            self.compare_mute_states(m.mute.keys() & set(names or m.mute), names)

    def compare_mute_states(self, registered: set[str], *names: Any) -> None:
        n, m = self.n, self.model
        assert n.muted_channels(*names) == sorted(c for c in registered if m.mute[c])
        assert n.non_muted_channels(*names) == sorted(c for c in registered if not m.mute[c])
        for found, mute in ((n.muted_subscribers(*names), True), (n.non_muted_subscribers(*names), False)):
            assert found.keys() <= registered
            for c in registered:
                ids = found.get(c, [])  # the documentation does not say whether a channel without any is named
                assert len(ids) == len(set(ids))
                assert set(ids) == {id for id, sub in m.subs[c].items() if sub[1] is mute}

    @invariant()
    def status_agrees(self) -> None:
        """Guarantees 5 and 11: one session from start to stop; counters only grow."""
        status = self.n.status()
        assert status["running"] is self.model.running
        assert status["active"] == self.n.active_channels()
        if self.model.running:
            assert status["pid"] == self.pid
        counters = {k: status[k] for k in ("received", "delivered", "failed", "restarts")}
        assert all(counters[k] >= v for k, v in self.counters.items())
        self.counters = counters

    @rule()
    def what_is_returned_belongs_to_the_caller(self) -> None:
        """The invariants say that nothing has changed."""
        spoil(self.n.channels())
        spoil(self.n.subscribers())
        spoil(self.n.active_channels())
        spoil(self.n.non_muted_channels())
        spoil(self.n.non_muted_subscribers())
        spoil(self.n.status())


def by_id(calls: Iterable[tuple[Any, ...]]) -> dict[Hashable, list[tuple[Any, ...]]]:
    """The calls of each id, in order; nothing is promised about the order of different ids."""
    found: dict[Hashable, list[tuple[Any, ...]]] = {}
    for call in calls:
        found.setdefault(call[1], []).append(call)
    return found


def spoil(value: Any) -> None:
    """Empty plain dicts and lists, all the way down."""
    if type(value) is dict:
        for inner in value.values():
            spoil(inner)
    if isinstance(value, (dict, list)) or hasattr(value, "evolver"):  # a persistent map has no business here
        assert type(value) in (dict, list), type(value)
        value.clear()


@pytest.mark.timeout(400)  # seconds; a failure takes its time to be made small
def test_any_sequence_of_calls(server: str, sender: psycopg.Connection[Any]) -> None:
    """Guarantees 3, 4, 5, 6, 11, 12."""

    class OnThisServer(Calls):
        def __init__(self) -> None:
            super().__init__(server, sender)

    run_state_machine_as_test(
        OnThisServer,
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
