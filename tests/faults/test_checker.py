"""The checker itself: it must fail where there is something wrong (guarantee 10)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from pgnotifier import Gap

from .traffic import Sent, Stream, judge

START = datetime(2024, 1, 1, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


SENT = [Sent(number, at(number), at(number + 0.1)) for number in range(1, 9)]
NAIVE = at(5).replace(tzinfo=None)
HOLE = Gap("c", "connection", since=at(3.05), until=at(5.5))  # for 4 and 5


def stream(*items: int | Gap | None) -> Stream:
    return Stream("c", list(items), listening_at=START)


@pytest.mark.parametrize(
    "good",
    [
        stream(None, 1, 2, 3, 4, 5, 6, 7, 8),
        stream(None, 1, 2, 3, HOLE, 6, 7, 8),
        stream(None, 1, 2, 3, HOLE, HOLE, 6, 7, 8),
        stream(None, 1, 2, 3, 4, replace(HOLE, since=at(4.05)), 6, 7, 8),
        stream(None, 1, 2, 3, 4, 5, replace(HOLE, until=at(9)), 7, 8),
        stream(None, 1, 2, 3, 4, 5, 6, replace(HOLE, until=at(9))),
    ],
)
def test_what_is_right_passes(good: Stream) -> None:
    """Guarantee 10: delivered whole, or with a Gap at each hole."""
    verdict = judge(good, SENT)
    assert verdict.problems == []
    assert (verdict.lost, verdict.delivered + verdict.covered) == (0, 8)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (stream(None, 1, 2, 2, 3, 4, 5, 6, 7, 8), "twice"),
        (stream(None, 1, 3, 2, 4, 5, 6, 7, 8), "after"),
        (stream(None, 1, 2, 3, 6, 7, 8), "missing"),
        (stream(None, 1, 2, 3, 4, 5, 6), "missing"),
        (stream(None, 2, 3, 4, 5, 6, 7, 8), "missing"),
        (stream(None, 1, 2, 3, replace(HOLE, since=at(4.2)), 6, 7, 8), "missing"),
        (stream(None, 1, 2, 3, replace(HOLE, until=at(4.9)), 6, 7, 8), "missing"),
        (stream(None, 1, 2, 3, 6, HOLE, 7, 8), "missing"),
        (stream(None, 1, 2, HOLE, 3, 6, 7, 8), "missing"),
        (stream(1, 2, 3, 4, 5, 6, 7, 8), "None"),
        (stream(1, None, 2, 3, 4, 5, 6, 7, 8), "None"),
        (stream(None, 1, 2, 3, 4, None, 5, 6, 7, 8), "None"),
        (stream(None, 1, 2, 3, 4, 5, replace(HOLE, channel="d"), 6, 7, 8), "wrong gap"),
        (stream(None, 1, 2, 3, 4, 5, replace(HOLE, since=NAIVE, until=NAIVE), 6, 7, 8), "wrong gap"),
        (stream(), "None"),
    ],
    ids=[
        "duplicate",
        "reordered",
        "uncovered hole",
        "uncovered hole at the end",
        "uncovered hole at the start",
        "since too late",
        "until too early",
        "gap told after what follows the hole",
        "gap told before what precedes the hole",
        "never listening",
        "listening too late",
        "listening twice",
        "another channel's gap",
        "gap without a time zone",
        "nothing at all",
    ],
)
def test_what_is_wrong_fails(bad: Stream, why: str) -> None:
    """Guarantee 10: the checker says what is wrong."""
    problems = judge(bad, SENT).problems
    assert problems
    assert why in problems[0]


def test_what_nobody_promised_is_no_loss() -> None:
    """Guarantee 10: neither a commit that was never confirmed, nor what was sent before listening was in effect."""
    sent = [*SENT[:3], replace(SENT[3], after=None), *SENT[4:]]
    late = stream(None, 3, 5, 6, 7, 8)
    late.listening_at = at(2.5)
    assert judge(late, sent).problems == []
