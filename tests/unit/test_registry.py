"""Guarantee 3: the registry and its steps, against plain dictionaries."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnotifier import UnknownChannel, UnknownSubscriber, registry, snapshots
from pgnotifier.registry import EMPTY, SYSCHAN, Registry, Step, Subscription


def call(*_: Any) -> None:
    pass


def other(*_: Any) -> None:
    pass


@dataclass
class Model:
    """What the registry holds, as dictionaries that are changed in place."""

    mute: dict[str, bool] = field(default_factory=dict)  # by channel
    subs: dict[tuple[str, Hashable], tuple[Subscription, bool, int]] = field(
        default_factory=dict
    )  # given, mute, when

    def ids(self, name: str) -> list[Hashable]:
        return [id for channel, id in self.subs if channel == name]

    def channels_of(self, id: Hashable) -> list[str]:
        return [name for name, who in self.subs if who == id]

    def add(self, names: list[str], id: Hashable, sub: Subscription, mute: bool, serial: int) -> None:
        for name in names:
            self.mute.setdefault(name, False)

    def remove(self, names: list[str], id: Hashable, sub: Subscription, mute: bool, serial: int) -> None:
        for name in names:
            self.mute.pop(name, None)
            for who in self.ids(name):
                del self.subs[name, who]

    def subscribe(self, names: list[str], id: Hashable, sub: Subscription, mute: bool, serial: int) -> None:
        for name in names[:1]:
            self.mute.setdefault(name, False)
            was = (name, id) in self.subs and self.subs[name, id][1]
            self.subs[name, id] = sub, was, serial

    def unsubscribe(self, names: list[str], id: Hashable, sub: Subscription, mute: bool, serial: int) -> None:
        for name in names[:1]:
            self.subs.pop((name, id), None)

    def mute_channels(self, names: list[str], id: Hashable, sub: Subscription, mute: bool, serial: int) -> None:
        if any(name not in self.mute for name in names):
            raise UnknownChannel
        for name in names or [name for name in self.mute if name != SYSCHAN]:
            self.mute[name] = mute

    def mute_subscriber(self, names: list[str], id: Hashable, sub: Subscription, mute: bool, serial: int) -> None:
        if not self.channels_of(id):
            raise UnknownSubscriber
        for name in names:
            if name not in self.mute:
                raise UnknownChannel
            if (name, id) not in self.subs:
                raise UnknownSubscriber
        for name in names or self.channels_of(id):
            given, _, when = self.subs[name, id]
            self.subs[name, id] = given, mute, when

    def state(self) -> tuple[dict[str, bool], dict[tuple[str, Hashable], tuple[Subscription, bool, int]]]:
        return dict(self.mute), dict(self.subs)


def stepped(reg: Registry, op: str, names: list[str], id: Hashable, sub: Subscription, mute: bool, n: int) -> Step:
    if op == "add":
        return registry.add_channels(reg, names)
    if op == "remove":
        return registry.remove_channels(reg, names)
    if op == "mute_channels":
        return registry.mute_channels(reg, names, mute)
    if op == "mute_subscriber":
        return registry.mute_subscriber(reg, id, names, mute)
    if not names:
        return reg, ()
    if op == "subscribe":
        return registry.subscribe(reg, id, names[0], sub, n)
    return registry.unsubscribe(reg, id, names[0])


def agree(reg: Registry, model: Model) -> None:
    """The registry holds what the model holds, and its counts are right."""
    assert dict(reg.channels.items()).keys() == model.mute.keys()
    for name, entry in reg.channels.items():
        assert entry.mute == model.mute[name]
        assert dict(entry.subscribers.items()).keys() == set(model.ids(name))
        for id, sub in entry.subscribers.items():
            given, mute, _ = model.subs[name, id]
            assert sub.mute == mute
            assert replace(sub, mute=False).fn is given.fn
            assert (sub.on_listen, sub.latest) == (given.on_listen, given.latest)
        loud = [id for id in model.ids(name) if not model.subs[name, id][1]]
        assert entry.unmuted == len(loud)
        assert entry.valid == (not entry.mute and bool(loud))
        assert registry.is_valid(reg, name) == (entry.valid and name != SYSCHAN)
        assert set(registry.audience(entry)) == (set() if entry.mute else set(loud))
    assert {id: dict(names.items()) for id, names in reg.ids.items()} == {
        id: {name: model.subs[name, id][2] for name in model.channels_of(id)} for _, id in model.subs
    }
    assert list(registry.valid_channels(reg)) == sorted(n for n in model.mute if registry.is_valid(reg, n))


def views(reg: Registry, model: Model) -> None:
    """What users are shown."""
    active = ["a", "nowhere"]
    assert snapshots.channels_dict(reg, active) == {
        name: {
            "mute": mute,
            "active": name == "a",
            "subscribers": {
                id: {"fn": model.subs[name, id][0].fn, "mute": model.subs[name, id][1]} for id in model.ids(name)
            },
        }
        for name, mute in model.mute.items()
    }
    shown = snapshots.subscribers_dict(reg, active)
    assert shown.keys() == {id for _, id in model.subs}
    for id, row in shown.items():
        mine = {name: model.subs[name, id] for name in model.channels_of(id)}
        assert row["fn"] is max(mine.values(), key=lambda held: held[2])[0].fn
        assert row["channels"] == {
            name: {"fn": sub.fn, "active": name == "a", "mute": model.mute[name], "sub_mute": mute}
            for name, (sub, mute, _) in mine.items()
        }
    for mute in (False, True):
        expected = {name: {id for id in model.ids(name) if model.subs[name, id][1] == mute} for name in model.mute}
        got = snapshots.ids_by_channel(reg, [], mute)
        assert {name: set(found) for name, found in got.items()} == expected
        one = snapshots.ids_by_channel(reg, ["a", "nowhere"], mute)
        assert {name: set(found) for name, found in one.items()} == {n: f for n, f in expected.items() if n == "a"}


def changes(old: Registry, new: Registry) -> set[tuple[str, Hashable]]:
    """The subscriptions whose own state, or whose channel's mute state, is another one."""
    found: set[tuple[str, Hashable]] = set()
    for name in {*old.channels, *new.channels}:
        before, after = old.channels.get(name), new.channels.get(name)
        was = {} if before is None else dict(before.subscribers.items())
        now = {} if after is None else dict(after.subscribers.items())
        muted = before is not None and after is not None and before.mute != after.mute
        found |= {(name, id) for id in {*was, *now} if muted or was.get(id) is not now.get(id)}
    return found


subscriptions = st.builds(
    Subscription,
    st.sampled_from([call, other]),
    on_listen=st.sampled_from([None, call]),
    latest=st.booleans(),
)
steps = st.tuples(
    st.sampled_from(["add", "remove", "subscribe", "subscribe", "unsubscribe", "mute_channels", "mute_subscriber"]),
    st.lists(st.sampled_from(["a", "b", "c", SYSCHAN]), max_size=3),
    st.sampled_from([1, True, "x", (2, "y")]),  # 1 and True are one id
    subscriptions,
    st.booleans(),
)


@settings(max_examples=600, deadline=None)
@given(st.lists(steps, max_size=30))
def test_any_steps_do_what_they_do_to_dictionaries(script: list[tuple[Any, ...]]) -> None:
    """Guarantee 3: what is held and shown, no-ops that return the same object, and everything touched."""
    reg, model = EMPTY, Model()
    for serial, (op, names, id, sub, mute) in enumerate(script):
        before = model.state()
        try:
            getattr(model, op)(names, id, sub, mute, serial)
        except (UnknownChannel, UnknownSubscriber) as error:
            with pytest.raises(type(error)):
                stepped(reg, op, names, id, sub, mute, serial)
            agree(reg, model)
            continue
        new, touched = stepped(reg, op, names, id, sub, mute, serial)
        assert (new is reg) == (model.state() == before)
        said = {(name, id) for name, ids in touched if ids is not None for id in ids}
        everybody = {name for name, ids in touched if ids is None}
        changed = changes(reg, new)
        assert {pair for pair in changed if pair[0] not in everybody} == said
        assert everybody <= {name for name in {*reg.channels, *new.channels} if reg.channels.get(name) is not None}
        assert not (new is reg and touched)
        agree(new, model)
        reg = new
    views(reg, model)


def test_a_call_with_one_unknown_name_among_many_changes_nothing() -> None:
    """Guarantees 3 and 12: all or nothing, and the error says which name."""
    reg, _ = registry.subscribe(EMPTY, 1, "a", Subscription(call), 1)
    reg, _ = registry.add_channels(reg, ["b"])
    with pytest.raises(UnknownChannel, match="'c'"):
        registry.mute_channels(reg, ["a", "b", "c"], True)
    with pytest.raises(UnknownSubscriber, match="'b'"):
        registry.mute_subscriber(reg, 1, ["a", "b"], True)
    with pytest.raises(UnknownChannel, match="'c'"):
        registry.mute_subscriber(reg, 1, ["a", "c"], True)
    with pytest.raises(UnknownSubscriber, match="2"):
        registry.mute_subscriber(reg, 2, [], True)
    assert snapshots.channels_dict(reg, []) == {
        "a": {"mute": False, "active": False, "subscribers": {1: {"fn": call, "mute": False}}},
        "b": {"mute": False, "active": False, "subscribers": {}},
    }


def test_what_is_shown_belongs_to_the_caller() -> None:
    """Guarantee 3: a copy, whatever the caller does to it."""
    reg, _ = registry.subscribe(EMPTY, 1, "a", Subscription(call), 1)
    for shown in (snapshots.channels_dict, snapshots.subscribers_dict):
        copy: Any = shown(reg, ["a"])
        for inner in copy.values():
            inner.clear()
        copy.clear()
        assert shown(reg, ["a"])
