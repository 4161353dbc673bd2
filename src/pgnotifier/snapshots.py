"""Pure: the copies of a registry that `channels()`, `subscribers()` and the like return."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from .registry import Registry
from .types import ChannelState, SubscriberChannel, SubscriberState


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
    """Return `{channel: [ids]}` of the subscribers whose own mute state is `mute`, on `names` (none: all)."""
    wanted = tuple(names) or tuple(reg.channels)
    return {
        name: [id for id, sub in reg.channels[name].subscribers.items() if sub.mute == mute]
        for name in wanted
        if name in reg.channels
    }
