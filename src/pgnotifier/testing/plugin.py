"""pytest's fixtures of pgnotifier: `pytest_plugins = ["pgnotifier.testing.plugin"]` in a `conftest.py` has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .notifier import MemoryNotifier
from .server import MemoryServer


@pytest.fixture
def pgnotifier_server() -> Iterator[MemoryServer]:
    """A `pgnotifier.testing.MemoryServer`; at the end of the test all notifiers on it are stopped."""
    with MemoryServer() as server:
        yield server


@pytest.fixture
def pgnotifier_notifier(pgnotifier_server: MemoryServer) -> MemoryNotifier:
    """A running `pgnotifier.testing.MemoryNotifier` on `pgnotifier_server`."""
    return pgnotifier_server.Notifier()
