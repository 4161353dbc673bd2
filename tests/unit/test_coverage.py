"""Guarantees 9 and 10: what every subscription was told, and how long the listener waits, against models."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnotifier import clock
from pgnotifier.delivery.coverage import Coverage, ListenCall
from pgnotifier.delivery.patience import LEAST, PATIENCE_SECONDS, REFILL, Patience
from pgnotifier.gap import GRAVEST_FIRST, Gap, merge

START = datetime(2030, 1, 1, tzinfo=timezone.utc)


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def whole(parts: list[Gap]) -> tuple[object, ...]:
    """What one gap for all of these has to say, but for its end."""
    counts = [p.dropped for p in parts]
    return (
        min((p.reason for p in parts), key=GRAVEST_FIRST.index),
        min(p.since for p in parts),
        None if None in counts else sum(c or 0 for c in counts),
        next((p.error for p in parts if p.error), None),
    )


@dataclass
class Model:
    """One subscription with `on_listen`: was it told, is it covered, and what has it missed."""

    told: bool = False
    covered: bool = False
    missed: list[Gap] = field(default_factory=list)

    def miss(self, gap: Gap) -> None:
        if self.told:
            self.missed.append(gap)

    def due(self) -> list[Gap] | None:
        """What is to be told, if anything: no gaps the first time."""
        missed, self.missed = self.missed, []
        if not self.told:
            self.told = True
            return []
        return missed or None


names, ids = st.sampled_from(["a", "b"]), st.sampled_from([1, 2])
steps = st.one_of(
    st.tuples(st.sampled_from(["cover", "cover", "uncover", "forget", "overflow"]), names, ids),
    st.tuples(st.sampled_from(["connection", "stopped"]), st.just("a"), st.just(0)),
    st.tuples(st.sampled_from(["newest back", "oldest back"]), st.just("a"), st.just(0)),
)


@settings(max_examples=600, deadline=None)
@given(st.lists(steps, max_size=40))
def test_every_gap_is_told_once_under_its_gravest_reason(script: list[tuple[str, str, int]]) -> None:
    """Guarantee 10: the first time, every reason, gaps that overlap, calls that failed, and no second first time."""
    coverage = Coverage()
    models: dict[tuple[str, int], Model] = {}
    made: list[tuple[int, ListenCall, Model]] = []  # calls that may yet fail, and whose they were
    for second, (op, name, id) in enumerate(script, 1):
        since, until = at(second * 10 - 5), at(second * 10)
        model = models.get((name, id))
        if op in ("cover", "uncover"):
            model = models.setdefault((name, id), Model())
            due = model.due() if op == "cover" and not model.covered else None
            if model.covered and op == "uncover":
                model.miss(Gap(name, "muted", since, until))
            model.covered = op == "cover"
            call = coverage.update(name, id, True, op == "cover", since, until)
            assert (call is None) == (due is None)
            if call is not None and due is not None:
                assert call.channel == name
                made.append((id, call, model))
                gap = call.gap
                assert (gap is None) == (not due)
                if gap is not None:
                    assert (gap.reason, gap.since, gap.dropped, gap.error) == whole(due)
                    assert (gap.channel, gap.until) == (name, until)
        elif op == "forget":
            models.pop((name, id), None)
            assert coverage.update(name, id, False, False, since, until) is None
        elif op == "overflow":
            # A call with what a mailbox dropped: the mailbox made it, and knows no state.
            gap = Gap(name, "overflow", since, until, id)
            assert coverage.give_back(id, ListenCall(name, gap)) == (model is None or not model.covered)
            assert coverage.give_back(id + 100, ListenCall(name, gap)), "nobody's"
            if model is not None and not model.covered:
                model.miss(gap)
        elif op in ("connection", "stopped"):
            error = "why" if op == "connection" else None
            coverage.lose(op, since, until, error)  # type: ignore[arg-type]
            for (channel, _), state in models.items():
                state.miss(Gap(channel, op, since, until, None, error))  # type: ignore[arg-type]
                state.covered = False
        elif made:
            id, call, state = made.pop(-1 if op == "newest back" else 0)
            is_current = models.get((call.channel, id)) is state
            assert coverage.give_back(id, call) == (not is_current or not state.covered)
            if is_current and not state.covered:
                if call.gap is None:
                    state.told, state.missed = False, []
                else:
                    state.miss(call.gap)
    assert set(coverage._states) == set(models)


def test_subscribing_again_is_no_new_first_time() -> None:
    """Guarantee 10."""
    coverage = Coverage()

    def update(wanted: bool, covered: bool) -> ListenCall | None:
        return coverage.update("a", 1, wanted, covered, at(0), at(1))

    first = update(True, True)
    assert first is not None
    assert first.gap is None
    assert update(True, True) is None
    assert update(True, False) is None
    second = update(True, True)
    assert second is not None
    assert second.gap is not None
    assert update(False, False) is None
    again = update(True, True)
    assert again is not None
    assert again.gap is None
    for call in (first, second):
        assert coverage.give_back(1, call), "the call of the one before is not due"
    assert not coverage.give_back(1, again)


def test_a_lost_connection_while_muted_is_one_gap() -> None:
    """Guarantee 10: causes that overlap make one Gap, under the gravest reason, from the earliest moment."""
    coverage = Coverage()
    assert coverage.update("a", 1, True, True, at(0), at(1)) is not None
    assert coverage.update("a", 1, True, False, at(10), at(11)) is None
    coverage.lose("connection", at(20), at(21), "cut")
    call = coverage.update("a", 1, True, True, at(30), at(31))
    assert call is not None
    assert call.gap == Gap("a", "connection", at(10), at(31), None, "cut")


def test_what_is_missed_while_nothing_is_covered_is_told_with_the_rest() -> None:
    """Guarantee 10: `stop()` throws away what waits, after coverage has ended."""
    coverage = Coverage()
    assert coverage.update("a", 1, True, True, at(0), at(1)) is not None
    coverage.lose("stopped", at(20), at(21))
    assert coverage.give_back(1, ListenCall("a", Gap("a", "stopped", at(5), at(21))))
    assert coverage.give_back(2, ListenCall("a", Gap("a", "stopped", at(1), at(21))))
    assert coverage.give_back(1, ListenCall("b", Gap("b", "stopped", at(1), at(21))))
    call = coverage.update("a", 1, True, True, at(30), at(31))
    assert call is not None
    assert call.gap == Gap("a", "stopped", at(5), at(31))


def test_a_clock_that_was_set_back_makes_a_gap_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 10: `since` is never too late, and never later than `until`."""
    coverage = Coverage()
    assert coverage.update("a", 1, True, True, at(0), at(1)) is not None
    coverage.lose("connection", at(100), at(101))
    monkeypatch.setattr(clock, "_set_back", [(at(105), timedelta(seconds=60))])
    call = coverage.update("a", 1, True, True, at(50), at(51))
    assert call is not None
    assert call.gap == Gap("a", "connection", at(40), at(51))


def test_two_calls_become_one_where_both_have_a_gap() -> None:
    state = object()
    one, two = Gap("a", "muted", at(0), at(1)), Gap("a", "connection", at(2), at(3))
    for first, second in ((state, None), (None, state)):
        both = ListenCall("a", one, first).merged(ListenCall("a", two, second))
        assert both is not None
        assert (both.channel, both.gap, both.state) == ("a", merge(one, two), state)
    assert ListenCall("a", None).merged(ListenCall("a", two)) is None
    assert ListenCall("a", one).merged(ListenCall("a", None)) is None
    assert ListenCall("b", one).merged(ListenCall("a", two)) is None
    assert ListenCall("a", one).merged(two) is None


gaps = st.builds(
    Gap,
    st.just("a"),
    st.sampled_from(GRAVEST_FIRST),
    st.integers(0, 50).map(at),
    st.integers(50, 99).map(at),
    st.none() | st.integers(0, 9),
    st.none() | st.sampled_from(["why", "and why"]),
)


@given(st.lists(gaps, min_size=1, max_size=6))
def test_merged_gaps_cover_all_of_them(parts: list[Gap]) -> None:
    """Guarantee 10: the gravest reason, the longest period, a sum where every count is known."""
    one: Gap | None = None
    for part in parts:
        one = merge(one, part)
    assert one is not None
    assert (one.reason, one.since, one.dropped, one.error) == whole(parts)
    assert one.until == max(p.until for p in parts)


# -- patience --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 2)), max_size=40))
def test_the_listener_waits_no_longer_than_its_budget(waits: list[tuple[float, float]]) -> None:
    """Guarantee 9: one second, which refills by ten milliseconds a second, and never holds more."""
    moment, model, spent = 1000.0, PATIENCE_SECONDS, 0.0
    patience = Patience(moment)
    for pause, wish in waits:
        moment += pause
        model = min(PATIENCE_SECONDS, model + REFILL * pause)
        left = patience.left(moment)
        assert left == pytest.approx(model if model >= LEAST else 0.0, abs=1e-6) or abs(model - LEAST) < 1e-6
        seconds = min(wish, left)
        moment += seconds  # the wait itself takes time, in which the budget refills
        patience.spend(seconds, moment)
        model = max(0.0, min(PATIENCE_SECONDS, model + REFILL * seconds) - seconds)
        spent += seconds
        assert spent <= PATIENCE_SECONDS + REFILL * (moment - 1000.0) + 1e-6


def test_a_wait_that_took_too_long_leaves_no_debt() -> None:
    """Guarantee 9: a wait that outlasts the budget ends it, and the refill begins at nothing."""
    patience = Patience(0.0)
    assert patience.left(0.0) == 1.0
    patience.spend(50.0, 50.0)
    assert patience.left(50.0) == 0.0
    assert patience.left(50.5) == 0.0  # less than is worth a wait
    assert patience.left(52.0) == pytest.approx(0.02)
    assert patience.left(10_000.0) == 1.0
