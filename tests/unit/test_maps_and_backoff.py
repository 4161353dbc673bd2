"""The public map helpers and the backoff policy."""

from __future__ import annotations

from pyrsistent import freeze, pmap

from pgnotifier import assoc_in, dissoc_in, filterkv
from pgnotifier.connection import backoff


def test_helpers_as_in_0_0_10() -> None:
    m = freeze({"a": {"b": 1, "c": 2}})
    assert assoc_in(m, ["a", "b"], 5) == freeze({"a": {"b": 5, "c": 2}})
    assert assoc_in(m, ["x", "y"], 5) == m.set("x", pmap({"y": 5}))
    assert dissoc_in(m, ["a", "b"]) == freeze({"a": {"c": 2}})
    assert dissoc_in(m, ["a", "z"]) is m
    assert dissoc_in(m, ["z", "z"]) is m
    assert filterkv(pmap({1: 1, 2: 2}), lambda k, v, n: v > n, 1) == pmap({2: 2})


def test_backoff_is_bounded_and_grows() -> None:
    assert backoff.delay(1, 0.1, 30, 0.0) == 0.1
    assert backoff.delay(1000, 0.1, 30, 0.999999) < 30
    tops = [backoff.delay(n, 0.1, 30, 1.0) for n in range(1, 12)]
    assert tops == sorted(tops)
    assert tops[-1] == 30
