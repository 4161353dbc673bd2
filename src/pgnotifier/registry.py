"""Pure: what the user wants, as one immutable value, and functions from registry to registry (contract 3).

Every function returns the registry it was given where there is nothing to do, so `new is old` means: no change.
A change costs the same however much else is registered: `open` and `stale` are kept up with each step.
No threads, no I/O; arguments have been checked by the caller, but for what only the registry can know.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from pyrsistent import PMap, PVector, pmap, pvector

from .errors import UnknownChannel, UnknownSubscriber, shown
from .maps import assoc_in, dissoc_in, filterkv
from .types import Callback, ChannelState, OnListen, SubscriberChannel, SubscriberState

SYSCHAN = "PGNOTIFIER"

Touched = tuple[str, tuple[Hashable, ...] | None]


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """One id on one channel; `loop` runs `fn` where it `awaits`, and `on_listen` where it `tells_by_awaiting`."""

    fn: Callback
    mute: bool = False
    on_listen: OnListen | None = None
    latest: bool = False
    loop: Any = None
    awaits: bool = False
    tells_by_awaiting: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Channel:
    """One channel: `open` counts its unmuted subscribers."""

    mute: bool = False
    subscribers: PMap[Hashable, Subscription] = pmap()
    open: int = 0

    @property
    def valid(self) -> bool:
        return not self.mute and self.open > 0


@dataclass(frozen=True, slots=True, eq=False)
class Registry:
    """`ids` maps an id to its channels, each with a number that is greater the later its callback was given.

    `stale` holds the names whose validity has changed since the server was last told, `touched` the
    subscriptions that the last step may have changed: `(channel, ids)`, or None for all ids of the channel.
    """

    channels: PMap[str, Channel] = pmap()
    ids: PMap[Hashable, PMap[str, int]] = pmap()
    stale: PMap[str, bool] = pmap()
    touched: tuple[Touched, ...] = ()


EMPTY = Registry()


def renewed(reg: Registry) -> Registry:
    """The same, and not the same object: what was decided by the one is decided anew."""
    return replace(reg)


def recorded(reg: Registry) -> Registry:
    """`reg` after its last step was published."""
    return Registry(reg.channels, reg.ids, reg.stale) if reg.touched else reg


def told(reg: Registry) -> Registry:
    """`reg` after the server was told of all that is valid, too."""
    return Registry(reg.channels, reg.ids) if reg.stale or reg.touched else reg


def untold(reg: Registry) -> Registry:
    """`reg` as if the server had been told of nothing: all that is valid is compared with what is listened to."""
    valid = {name: True for name, entry in reg.channels.items() if entry.valid and name != SYSCHAN}
    return Registry(reg.channels, reg.ids, reg.stale.update(valid))


def unsure(reg: Registry, names: Iterable[str]) -> Registry:
    """`reg` where the server may have been told of `names`, or not."""
    stale = reg.stale
    for name in names:
        stale = stale.set(name, True)
    return Registry(reg.channels, reg.ids, stale, reg.touched)


def is_valid(reg: Registry, name: str) -> bool:
    """Whether that channel should be listened to; SYSCHAN always is, and does not count."""
    entry = reg.channels.get(name)
    return entry is not None and entry.valid and name != SYSCHAN


def _put(reg: Registry, name: str, entry: Channel | None) -> Registry:
    """`reg` with that entry for `name` (None: without one), and `stale` to match."""
    old = reg.channels.get(name)
    changes = (old is not None and old.valid) != (entry is not None and entry.valid) and name != SYSCHAN
    channels = reg.channels.discard(name) if entry is None else reg.channels.set(name, entry)
    return Registry(channels, reg.ids, reg.stale.set(name, True) if changes else reg.stale, reg.touched)


def _touch(new: Registry, old: Registry, touched: Iterable[Touched]) -> Registry:
    return old if new is old else replace(new, touched=tuple(touched))


def _forget(reg: Registry, id: Hashable, name: str) -> Registry:
    """`reg` with the id's record rid of that channel, and of itself with the last one."""
    ids = dissoc_in(reg.ids, [id, name])
    return replace(reg, ids=ids if ids[id] else ids.discard(id))


def add_channels(reg: Registry, names: Iterable[str]) -> Registry:
    new = reg
    for name in names:
        if name not in new.channels:
            new = _put(new, name, Channel())
    return _touch(new, reg, ())


def remove_channels(reg: Registry, names: Iterable[str]) -> Registry:
    names = tuple(names)
    new = reg
    for name in names:
        entry = new.channels.get(name)
        if entry is not None:
            for id in entry.subscribers:
                new = _forget(new, id, name)
            new = _put(new, name, None)
    return _touch(new, reg, ((name, None) for name in names))


def subscribe(reg: Registry, id: Hashable, name: str, sub: Subscription, serial: int) -> Registry:
    """`serial` grows with each call; it tells which callback of an id is the latest. The mute state is kept."""
    entry = reg.channels.get(name) or Channel()
    old = entry.subscribers.get(id)
    if old is not None and old.mute:
        sub = replace(sub, mute=True)
    grown = Channel(entry.mute, entry.subscribers.set(id, sub), entry.open + (old is None))
    ids = assoc_in(reg.ids, [id, name], serial)
    return replace(_put(reg, name, grown), ids=ids, touched=((name, (id,)),))


def unsubscribe(reg: Registry, id: Hashable, name: str) -> Registry:
    entry = reg.channels.get(name)
    sub = None if entry is None else entry.subscribers.get(id)
    if entry is None or sub is None:
        return reg
    left = replace(entry, subscribers=dissoc_in(entry.subscribers, [id]), open=entry.open - (not sub.mute))
    return replace(_forget(_put(reg, name, left), id, name), touched=((name, (id,)),))


def mute_channels(reg: Registry, names: Iterable[str], mute: bool) -> Registry:
    """No names: all channels but SYSCHAN. Raises UnknownChannel, nothing changed."""
    new = reg
    names = tuple(names) or tuple(c for c in reg.channels if c != SYSCHAN)
    for name in names:
        entry = new.channels.get(name)
        if entry is None:
            raise UnknownChannel(f"channel {name!r} is not registered")
        if entry.mute != mute:
            new = _put(new, name, replace(entry, mute=mute))
    return _touch(new, reg, ((name, None) for name in names))


def mute_subscriber(reg: Registry, id: Hashable, names: Iterable[str], mute: bool) -> Registry:
    """No names: every channel of the id. Raises UnknownSubscriber or UnknownChannel, nothing changed."""
    if id not in reg.ids:
        raise UnknownSubscriber(f"subscriber {shown(id)} is not registered")
    new = reg
    names = tuple(names) or tuple(reg.ids[id])
    for name in names:
        entry = new.channels.get(name)
        if entry is None:
            raise UnknownChannel(f"channel {name!r} is not registered")
        sub = entry.subscribers.get(id)
        if sub is None:
            raise UnknownSubscriber(f"subscriber {shown(id)} is not registered on channel {name!r}")
        if sub.mute != mute:
            subs = assoc_in(entry.subscribers, [id], replace(sub, mute=mute))
            new = _put(new, name, replace(entry, subscribers=subs, open=entry.open + (-1 if mute else 1)))
    return _touch(new, reg, ((name, (id,)) for name in names))


def valid_channels(reg: Registry) -> PVector[str]:
    """The channels that should be listened to, sorted; SYSCHAN is not among them."""
    return pvector(sorted(name for name, entry in reg.channels.items() if entry.valid and name != SYSCHAN))


def only(reg: Registry, name: str) -> Registry:
    """`reg` without all other channels, to decide who is called; the ids stay, for they are not forgotten."""
    entry = reg.channels.get(name)
    return Registry(channels=pmap() if entry is None else pmap({name: entry}), ids=reg.ids)


def stands_in(reg: Registry, id: Hashable, name: str) -> bool:
    """Whether that id is subscribed to that channel."""
    entry = reg.channels.get(name)
    return entry is not None and id in entry.subscribers


def subscription(reg: Registry, id: Hashable, name: str) -> Subscription | None:
    """The subscription of that id to that channel, where it is to be called now: None where it is gone or muted."""
    entry = reg.channels.get(name)
    if entry is None or entry.mute:
        return None
    sub = entry.subscribers.get(id)
    return None if sub is None or sub.mute else sub


def audience(entry: Channel | None) -> PMap[Hashable, Subscription]:
    """Who is to be called for a notification on a channel with that entry."""
    if entry is None or not entry.valid:
        return pmap()
    return filterkv(entry.subscribers, lambda _, sub: not sub.mute)


def channels_dict(reg: Registry, active: Iterable[str]) -> dict[str, ChannelState]:
    live = set(active)
    return {
        name: {
            "mute": entry.mute,
            "active": name in live,
            "subscribers": {id: {"fn": sub.fn, "mute": sub.mute} for id, sub in entry.subscribers.items()},
        }
        for name, entry in reg.channels.items()
    }


def subscribers_dict(reg: Registry, active: Iterable[str]) -> dict[Hashable, SubscriberState]:
    live = set(active)

    def row(id: Hashable, name: str) -> SubscriberChannel:
        entry = reg.channels[name]
        sub = entry.subscribers[id]
        return {"fn": sub.fn, "active": name in live, "mute": entry.mute, "sub_mute": sub.mute}

    return {
        id: {
            "fn": reg.channels[max(names, key=names.__getitem__)].subscribers[id].fn,
            "channels": {name: row(id, name) for name in names},
        }
        for id, names in reg.ids.items()
    }


def ids_by_channel(reg: Registry, names: Iterable[str], mute: bool) -> dict[str, list[Hashable]]:
    """`{channel: [ids]}` of the subscribers whose own mute state is `mute`; no names: every channel."""
    wanted = tuple(names) or tuple(reg.channels)
    return {
        name: [id for id, sub in reg.channels[name].subscribers.items() if sub.mute == mute]
        for name in wanted
        if name in reg.channels
    }
