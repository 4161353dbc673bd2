"""The phases between one `start` and its `stop`: the table of steps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from pgnotifier.connection import new_loop
from pgnotifier.connection.lifetime import NEXT, STOPPED, Lifetime, Phase

LONG_AGO = datetime(2000, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def lifetime() -> Iterator[Lifetime]:
    lifetime = Lifetime("", 10.0, (0.1, 30.0), since=LONG_AGO)
    yield lifetime
    lifetime.close()


@pytest.mark.parametrize("begin", Phase)
@pytest.mark.parametrize("end", Phase)
def test_a_notifier_takes_every_step_of_the_table_and_no_other(lifetime: Lifetime, begin: Phase, end: Phase) -> None:
    lifetime.phase = begin
    if end in NEXT[begin]:
        lifetime.to(end)
        assert lifetime.phase is end
        assert lifetime.since > LONG_AGO
    else:
        with pytest.raises(RuntimeError, match=f"from {begin.name} to {end.name}"):
            lifetime.to(end)
        assert (lifetime.phase, lifetime.since) == (begin, LONG_AGO)


def test_every_phase_leads_to_the_end() -> None:
    assert set(NEXT) == set(Phase)
    for phase in Phase:
        reached: set[Phase] = set()
        ahead = {phase}
        while ahead - reached:
            reached |= ahead
            ahead = {after for before in reached for after in NEXT[before]}
        assert STOPPED in reached


def test_what_a_lifetime_holds_is_closed_once(lifetime: Lifetime) -> None:
    """Guarantee 11: a second thread that ends, or an interrupted one that ends again, closes nothing twice."""
    lifetime.loop = new_loop()
    lifetime.close()
    assert lifetime.loop.is_closed()
    assert lifetime.started.is_set()
    assert lifetime.ended.is_set()
    lifetime.ended.clear()
    lifetime.close()
    assert not lifetime.ended.is_set()
