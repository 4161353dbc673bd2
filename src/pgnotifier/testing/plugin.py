"""Fixtures for pytest: add `pytest_plugins = ["pgnotifier.testing.plugin"]` to your top-level `conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .notifier import MemoryNotifier
from .server import MemoryServer


@pytest.fixture
def pgnotifier_server() -> Iterator[MemoryServer]:
    """A `pgnotifier.testing.MemoryServer`. At the end of the test it stops all notifiers on it."""
    with MemoryServer() as server:
        yield server


@pytest.fixture
def pgnotifier_notifier(pgnotifier_server: MemoryServer) -> MemoryNotifier:
    """A running `pgnotifier.testing.MemoryNotifier` on `pgnotifier_server`."""
    return pgnotifier_server.Notifier()
