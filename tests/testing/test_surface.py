"""The stand-in has the surface of the real one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

from pgnotifier import Notifier
from pgnotifier.testing import MemoryNotifier, MemoryServer

PUBLIC = [name for name in dir(Notifier) if not name.startswith("_") or name in ("__enter__", "__exit__")]
SEAM = ["maybe_stop", "maybe_restart", "notify", "valid_chans", "mute_chans", "mute_sub"]


def shape(f: Any) -> list[tuple[object, ...]]:
    """Names, kinds, annotations and defaults (a lambda is like another)."""
    signature = inspect.signature(f)
    parameters = [
        (p.name, p.kind, p.annotation, "a lambda" if inspect.isfunction(p.default) else p.default)
        for p in signature.parameters.values()
    ]
    return [*parameters, ("return", signature.return_annotation)]


@pytest.mark.parametrize("name", [*PUBLIC, *(f"_Notifier__{name}" for name in SEAM)])
def test_every_method_has_the_same_signature(name: str) -> None:
    """Guarantees 3, 0.0.10's private seam too."""
    real, memory = getattr(Notifier, name), getattr(MemoryNotifier, name)
    if callable(real):
        assert shape(memory) == shape(real)
    else:
        assert memory == real


def test_construction_takes_the_same_and_a_server() -> None:
    """Guarantee 2."""
    real = dict(inspect.signature(Notifier).parameters)
    memory = dict(inspect.signature(MemoryNotifier).parameters)
    assert memory.pop("server").default is None
    assert memory == real
    assert list(memory) == list(real)
    assert inspect.signature(MemoryServer().Notifier) == inspect.signature(MemoryNotifier)


def test_status_has_the_same_keys(server: str) -> None:
    """Guarantee 11."""
    with Notifier(server) as real, MemoryNotifier() as memory:
        assert {k: type(v) for k, v in memory.status().items()} == {k: type(v) for k, v in real.status().items()}


def test_no_test_framework_is_imported() -> None:
    code = "import sys, pgnotifier.testing; sys.exit('pytest' in sys.modules or 'unittest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
