"""The public map helpers, the backoff policy and the floors of the house."""

from __future__ import annotations

import ast
from pathlib import Path

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


FLOORS = [
    "libpq",
    "errors clock",
    "gap maps payload backoff conninfo",
    "types",
    "registry",
    "hearing",
    "items",
    "arguments log flag",
    "wire",
    "session mailbox",
    "guard workers sender listener boxes",
    "loops",
    "calls",
    "posting",
    "delivery",
    "link lifecycle",
    "keeper",
    "notifier terminal",
    "advice views",
    "doctor demo",
    "commands",
    "cli",
]
FORBIDDEN = {"threading", "time", "random", "logging", "socket", "asyncio", "psycopg"}


def test_imports_go_down_only() -> None:
    """design.md: the floors."""
    source = Path(backoff.__file__).parent
    level = {name: n for n, names in enumerate(FLOORS) for name in names.split()}
    for name, n in level.items():
        for node in ast.walk(ast.parse((source / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                for target in [node.module] if node.module else [a.name for a in node.names]:
                    assert level[str(target)] < n, f"{name} imports {target}"
            elif isinstance(node, ast.Import | ast.ImportFrom) and n < 6 and name not in ("errors", "clock"):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert not FORBIDDEN & {str(m).split(".")[0] for m in names}, name
