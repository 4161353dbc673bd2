"""Guarantee 10: what every subscription was told, against a model that is a record of moments."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pgnotifier import registry
from pgnotifier.delivery.coverage import Hearing, Telling
from pgnotifier.gap import GRAVEST_FIRST, Gap, Reason, merge
from pgnotifier.registry import EMPTY, Registry, Subscription

START = datetime(2030, 1, 1, tzinfo=timezone.utc)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def call(*_: Any) -> None:
    pass


def constant(moment: datetime) -> Callable[[Hashable], datetime]:
    return lambda _: moment


@dataclass
class Model:
    """One subscription with `on_listen`: was it told, does it hear, and why not, since when."""

    told: bool = False
    hears: bool = False
    causes: list[tuple[Reason, datetime, str | None]] = field(default_factory=list)

    def miss(self, reason: Reason, since: datetime, error: str | None = None) -> None:
        if self.told:
            self.causes.append((reason, since, error))

    def hear(self) -> tuple[Reason | None, datetime | None] | None:
        """What is told, where anything is: (None, None) the first time."""
        causes, self.causes = self.causes, []
        if not self.told:
            self.told = True
            return None, None
        if not causes:
            return None
        return min((c[0] for c in causes), key=GRAVEST_FIRST.index), min(c[1] for c in causes)


ids, names = st.sampled_from([1, 2]), st.sampled_from(["a", "b"])
steps = st.one_of(
    st.tuples(st.sampled_from(["subscribe", "unsubscribe", "mute", "unmute", "deaf", "sub_plain"]), names, ids),
    st.tuples(st.sampled_from(["mute_channel", "unmute_channel", "remove", "listen", "unlisten"]), names, st.just(0)),
    st.tuples(st.sampled_from(["connection", "stopped", "back"]), st.just(""), st.just(0)),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(steps, max_size=40))
def test_every_stretch_is_told_once_under_its_gravest_reason(script: list[tuple[str, str, int]]) -> None:
    """Guarantee 10: the first time, each reason, what overlaps, what could not be told, and no second first time."""
    hearing, reg = Hearing(), EMPTY
    model: dict[tuple[str, Hashable], Model] = {}
    active: set[str] = set()
    untold: list[tuple[Hashable, Telling]] = []
    for second, (op, name, id) in enumerate(script, 1):
        since, until = at(second * 10 - 5), at(second * 10)
        new: Registry = reg
        changed: list[str] = []
        if op in ("subscribe", "deaf", "sub_plain"):
            new = registry.subscribe(
                reg, id, name, Subscription(call, on_listen=None if op == "deaf" else call), second
            )
        elif op == "unsubscribe":
            new = registry.unsubscribe(reg, id, name)
        elif op in ("mute", "unmute"):
            if id in reg.ids and name in reg.channels and id in reg.channels[name].subscribers:
                new = registry.mute_subscriber(reg, id, [name], op == "mute")
        elif op in ("mute_channel", "unmute_channel"):
            if name in reg.channels:
                new = registry.mute_channels(reg, [name], op == "mute_channel")
        elif op == "remove":
            new = registry.remove_channels(reg, [name])
        elif op in ("listen", "unlisten"):
            active = active | {name} if op == "listen" else active - {name}
            changed = [name]
        elif op in ("connection", "stopped"):
            reason: Reason = "connection" if op == "connection" else "stopped"
            hearing.lose(reason, constant(since), until, "why" if op == "connection" else None)
            for state in model.values():
                state.miss(reason, since, "why" if op == "connection" else None)
                state.hears = False
            active = set()
        elif op == "back" and untold:
            # A worker could not tell it, for the subscription does not hear any more: else it would have.
            who, telling = untold.pop()
            back = model.get((telling.channel, who))
            if back is None or back.hears:
                continue
            hearing.give_back(who, telling)
            if telling.gap is None:
                back.told, back.causes = False, []
            elif back.told:
                back.causes.append((telling.gap.reason, telling.gap.since, telling.gap.error))
            continue
        touched = new.touched if new is not reg else ()
        reg = registry.recorded(new)
        tellings = hearing.follow(reg, active, [*touched, *((n, None) for n in changed)], constant(since), until)

        expected: dict[tuple[str, Hashable], tuple[Reason | None, datetime | None]] = {}
        with_on_listen = {
            (c, i) for c, entry in reg.channels.items() for i, sub in entry.subscribers.items() if sub.on_listen
        }
        for pair in set(model) - with_on_listen:
            del model[pair]
        for pair in with_on_listen:
            state = model.setdefault(pair, Model())
            hears = pair[0] in active and registry.subscription(reg, pair[1], pair[0]) is not None
            if hears and not state.hears and (due := state.hear()) is not None:
                expected[pair] = due
            elif state.hears and not hears:
                state.miss("muted", since)
            state.hears = hears
        got = {(t.channel, i): (t.gap.reason, t.gap.since) if t.gap else (None, None) for i, t in tellings}
        assert len(got) == len(tellings)
        assert got == expected
        for _, telling in tellings:
            if telling.gap is not None:
                assert telling.gap.until == until
                assert telling.gap.channel == telling.channel
        untold += tellings


def followed(hearing: Hearing, reg: Registry, active: set[str], seconds: int) -> list[Gap | None]:
    touched = reg.touched or [(name, None) for name in reg.channels]
    return [t.gap for _, t in hearing.follow(reg, active, touched, lambda _: at(seconds), at(seconds + 1))]


def test_subscribing_again_is_no_new_first_time() -> None:
    """Guarantee 10."""
    hearing = Hearing()
    reg = registry.subscribe(EMPTY, 1, "a", Subscription(call, on_listen=call), 1)
    assert followed(hearing, reg, {"a"}, 0) == [None]
    assert followed(hearing, registry.subscribe(reg, 1, "a", Subscription(call, on_listen=call), 2), {"a"}, 1) == []
    gone = registry.unsubscribe(reg, 1, "a")
    assert followed(hearing, gone, set(), 2) == []
    anew = registry.subscribe(gone, 1, "a", Subscription(call, on_listen=call), 3)
    assert followed(hearing, anew, {"a"}, 3) == [None]


def test_a_lost_connection_while_muted_is_one_gap() -> None:
    """Guarantee 10: causes that overlap make one Gap, under the gravest reason, from the earliest moment."""
    hearing = Hearing()
    reg = registry.subscribe(EMPTY, 1, "a", Subscription(call, on_listen=call), 1)
    assert followed(hearing, reg, {"a"}, 0) == [None]
    muted = registry.mute_channels(reg, ["a"], True)
    assert followed(hearing, muted, set(), 10) == []
    hearing.lose("connection", lambda _: at(20), at(21), "cut")
    assert followed(hearing, registry.mute_channels(muted, ["a"], False), {"a"}, 30) == [
        Gap("a", "connection", at(10), at(31), None, "cut")
    ]


gaps = st.builds(
    Gap,
    st.just("a"),
    st.sampled_from(GRAVEST_FIRST),
    st.integers(0, 50).map(at),
    st.integers(50, 99).map(at),
    st.none() | st.integers(0, 9),
    st.none() | st.just("why"),
)


@given(st.lists(gaps, min_size=1, max_size=6))
def test_merged_gaps_cover_all_of_them(parts: list[Gap]) -> None:
    """Guarantee 10: the gravest reason, the longest stretch, a sum where every count is known."""
    whole: Gap | None = None
    for part in parts:
        whole = merge(whole, part)
    assert whole is not None
    assert whole.reason == min((p.reason for p in parts), key=GRAVEST_FIRST.index)
    assert (whole.since, whole.until) == (min(p.since for p in parts), max(p.until for p in parts))
    counts = [p.dropped for p in parts]
    assert whole.dropped == (None if None in counts else sum(c or 0 for c in counts))
    assert whole.error == next((p.error for p in parts if p.error), None)
