"""Pure helpers over `pyrsistent` maps, public since 0.0.10; the registry is written with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pyrsistent import PMap, pmap

K = TypeVar("K")
V = TypeVar("V")


def assoc_in(m: PMap[K, V], pv: Sequence[Any], v: Any) -> PMap[K, V]:
    """Return `m` with value `v` at the key path `pv`; missing maps on the way are created.

    >>> assoc_in(pmap({"a": pmap({"b": 1})}), ["a", "b"], 2)
    pmap({'a': pmap({'b': 2})})
    """
    key, rest = pv[0], pv[1:]
    if not rest:
        return m.set(key, v)
    return m.set(key, assoc_in(m.get(key, pmap()), rest, v))  # type: ignore[arg-type]


def dissoc_in(m: PMap[K, V], pv: Sequence[Any]) -> PMap[K, V]:
    """Return `m` without the key path `pv`; `m` itself if the path does not exist.

    >>> dissoc_in(pmap({"a": pmap({"b": 1})}), ["a", "b"])
    pmap({'a': pmap({})})
    """
    key, rest = pv[0], pv[1:]
    if key not in m:
        return m
    if not rest:
        return m.discard(key)
    inner: Any = m[key]
    changed: Any = dissoc_in(inner, rest)
    return m if changed is inner else m.set(key, changed)


def filterkv(m: PMap[K, V], f: Callable[..., object], *a: Any) -> PMap[K, V]:
    """Return the part of `m` for which `f(key, value, *a)` is true.

    >>> filterkv(pmap({1: 10, 2: 20}), lambda k, v, least: v >= least, 15)
    pmap({2: 20})
    """
    return pmap({k: v for k, v in m.items() if f(k, v, *a)})
