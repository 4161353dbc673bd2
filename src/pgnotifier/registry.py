"""Pure: the wanted subscriptions as one immutable value, and the steps from registry to registry (guarantee 3).

A step returns the next registry and the subscriptions that it may have changed. It returns the same registry if there
is nothing to do, so `new is old` means: no change. A step costs the same however much else is registered, because a
channel counts its unmuted subscribers. The caller has checked the arguments. A step that raises has changed nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from pyrsistent import PMap, PVector, pmap, pvector

from .errors import UnknownChannel, UnknownSubscriber, shown
from .maps import assoc_in, dissoc_in, filterkv
from .types import Callback, OnListen

SYSCHAN = "PGNOTIFIER"

NO_CHANNELS: PMap[str, bool] = pmap()
NO_SERIALS: PMap[str, int] = pmap()


class Keyed:
    """An object that users may pass in place of an id; `key` is its id in the registry."""

    key: Hashable


Touched = tuple[str, tuple[Hashable, ...] | None]  # a channel, and ids on it; None: all of them


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """One id on one channel. `loop` runs coroutine functions: `fn` if `awaits`, `on_listen` if `tells_by_awaiting`.

    `pulled` is the `Puller` of a stream, if it is one: readers take the notifications, and neither is called.
    """

    fn: Callback
    mute: bool = False
    on_listen: OnListen | None = None
    latest: bool = False
    loop: Any = None
    awaits: bool = False
    tells_by_awaiting: bool = False
    pulled: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """One channel. `unmuted` counts its subscribers that are not muted.

    `temporary`: only streams have registered it, so it is removed with its last subscriber.
    """

    mute: bool = False
    subscribers: PMap[Hashable, Subscription] = pmap()
    unmuted: int = 0
    temporary: bool = False

    @property
    def valid(self) -> bool:
        return not self.mute and self.unmuted > 0


@dataclass(frozen=True, slots=True, eq=False)
class Registry:
    """All channels by name. `ids` maps an id to its channels, each with the serial number of its subscription."""

    channels: PMap[str, Channel] = pmap()
    ids: PMap[Hashable, PMap[str, int]] = pmap()


EMPTY = Registry()

Step = tuple[Registry, tuple[Touched, ...]]


def is_valid(reg: Registry, name: str) -> bool:
    """Return True if that channel should be listened to. False for SYSCHAN, which always is."""
    entry = reg.channels.get(name)
    return entry is not None and entry.valid and name != SYSCHAN


def _put(reg: Registry, name: str, entry: Channel | None) -> Registry:
    """Return `reg` with `entry` for `name`, or without one if it is None."""
    channels = reg.channels.discard(name) if entry is None else reg.channels.set(name, entry)
    return Registry(channels, reg.ids)


def _forget(reg: Registry, id: Hashable, name: str) -> Registry:
    """Return `reg` without this channel of the id, and without the id if it was its last."""
    ids = dissoc_in(reg.ids, [id, name])
    return Registry(reg.channels, ids if ids[id] else ids.discard(id))


def add_channels(reg: Registry, names: Iterable[str]) -> Step:
    for name in names:
        entry = reg.channels.get(name)
        if entry is None or entry.temporary:
            reg = _put(reg, name, replace(entry or Channel(), temporary=False))
    return reg, ()


def remove_channels(reg: Registry, names: Iterable[str]) -> Step:
    touched: list[Touched] = []
    for name in names:
        entry = reg.channels.get(name)
        if entry is not None:
            for id in entry.subscribers:
                reg = _forget(reg, id, name)
            reg = _put(reg, name, None)
            touched.append((name, None))
    return reg, tuple(touched)


def subscribe(reg: Registry, id: Hashable, name: str, sub: Subscription, serial: int) -> Step:
    """Subscribe `id` to a channel, or replace its subscription there. The mute state is kept.

    `serial` grows with each call, and shows which callback of an id is the latest. Raises ValueError if the id is a
    stream's.
    """
    entry = reg.channels.get(name) or Channel()
    old = entry.subscribers.get(id)
    if old is not None and old.mute:
        sub = replace(sub, mute=True)
    if sub.pulled is None:
        entry = replace(entry, temporary=False)
        if is_stream(reg, id):
            raise ValueError(f"subscriber {shown(id)} is a stream's: close the stream, or use another id")
    grown = replace(entry, subscribers=entry.subscribers.set(id, sub), unmuted=entry.unmuted + (old is None))
    ids = assoc_in(reg.ids, [id, name], serial)
    return Registry(reg.channels.set(name, grown), ids), ((name, (id,)),)


def listen(reg: Registry, id: Hashable, names: Iterable[str], sub: Subscription, serial: int) -> Step:
    """Subscribe a stream to channels. Raises ValueError if the id is registered."""
    if id in reg.ids:
        raise ValueError(f"subscriber {shown(id)} is registered already: a stream needs an id of its own")
    touched: list[Touched] = []
    for name in names:
        if name not in reg.channels:
            reg = _put(reg, name, Channel(temporary=True))
        reg, more = subscribe(reg, id, name, sub, serial)
        touched += more
    return reg, tuple(touched)


def is_stream(reg: Registry, id: Hashable) -> bool:
    """Return True if that id is a stream's."""
    names = reg.ids.get(id)
    return names is not None and reg.channels[next(iter(names))].subscribers[id].pulled is not None


def unsubscribe(reg: Registry, id: Hashable, name: str) -> Step:
    entry = reg.channels.get(name)
    sub = None if entry is None else entry.subscribers.get(id)
    if entry is None or sub is None:
        return reg, ()
    left = replace(entry, subscribers=dissoc_in(entry.subscribers, [id]), unmuted=entry.unmuted - (not sub.mute))
    kept = None if left.temporary and not left.subscribers else left
    return _forget(_put(reg, name, kept), id, name), ((name, (id,)),)


def close_stream(reg: Registry, id: Hashable, pulled: object) -> Step:
    """Remove the stream `pulled` from all channels; do nothing if the id is another's by now."""
    touched: list[Touched] = []
    for name in reg.ids.get(id, ()):
        if reg.channels[name].subscribers[id].pulled is pulled:
            reg, more = unsubscribe(reg, id, name)
            touched += more
    return reg, tuple(touched)


def take_back(reg: Registry, before: Registry, id: Hashable, name: str, serial: int) -> Step:
    """Undo the `subscribe` of that serial, made on `before`, unless the pair has been subscribed or removed since."""
    entry, earlier = reg.channels.get(name), before.channels.get(name)
    if entry is None or reg.ids.get(id, NO_SERIALS).get(name) != serial:
        return reg, ()
    old = earlier.subscribers.get(id) if earlier is not None else None
    if old is not None:
        return subscribe(reg, id, name, replace(old, mute=entry.subscribers[id].mute), before.ids[id][name])
    reg, touched = unsubscribe(reg, id, name)
    left = reg.channels[name]
    return (_put(reg, name, None) if earlier is None and not left.subscribers and not left.mute else reg), touched


def move(reg: Registry, loop: Any) -> Step:
    """Make all coroutine functions run on `loop`."""
    touched: list[Touched] = []
    for name, entry in reg.channels.items():
        moved = {i: replace(s, loop=loop) for i, s in entry.subscribers.items() if s.loop not in (None, loop)}
        if moved:
            reg = _put(reg, name, replace(entry, subscribers=entry.subscribers.update(moved)))
            touched.append((name, tuple(moved)))
    return reg, tuple(touched)


def mute_channels(reg: Registry, names: Iterable[str], mute: bool) -> Step:
    """Mute or unmute channels (none: all but SYSCHAN). Raises UnknownChannel."""
    touched: list[Touched] = []
    for name in tuple(names) or tuple(c for c in reg.channels if c != SYSCHAN):
        entry = reg.channels.get(name)
        if entry is None:
            raise UnknownChannel(f"channel {name!r} is not registered")
        if entry.mute != mute:
            reg = _put(reg, name, replace(entry, mute=mute))
            touched.append((name, None))
    return reg, tuple(touched)


def mute_subscriber(reg: Registry, id: Hashable, names: Iterable[str], mute: bool) -> Step:
    """Mute or unmute an id on channels (none: all of its own). Raises UnknownSubscriber or UnknownChannel."""
    if id not in reg.ids:
        raise UnknownSubscriber(f"subscriber {shown(id)} is not registered")
    touched: list[Touched] = []
    for name in tuple(names) or tuple(reg.ids[id]):
        entry = reg.channels.get(name)
        if entry is None:
            raise UnknownChannel(f"channel {name!r} is not registered")
        sub = entry.subscribers.get(id)
        if sub is None:
            raise UnknownSubscriber(f"subscriber {shown(id)} is not registered on channel {name!r}")
        if sub.mute != mute:
            subs = assoc_in(entry.subscribers, [id], replace(sub, mute=mute))
            reg = _put(reg, name, replace(entry, subscribers=subs, unmuted=entry.unmuted + (-1 if mute else 1)))
            touched.append((name, (id,)))
    return reg, tuple(touched)


def valid_channels(reg: Registry) -> PVector[str]:
    """Return the channels that should be listened to, sorted, without SYSCHAN."""
    return pvector(sorted(name for name, entry in reg.channels.items() if entry.valid and name != SYSCHAN))


def audience(entry: Channel | None) -> PMap[Hashable, Subscription]:
    """Return the subscriptions that are called for a notification on a channel with that entry."""
    if entry is None or not entry.valid:
        return pmap()
    return filterkv(entry.subscribers, lambda _, sub: not sub.mute)
