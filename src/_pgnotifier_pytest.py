"""pytest's fixtures of pgnotifier. Beside the package, so that pytest imports pgnotifier only where they are used.

PYTEST_DONT_REWRITE: it asserts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pgnotifier.testing import MemoryNotifier, MemoryServer


@pytest.fixture
def pgnotifier_server() -> Iterator[MemoryServer]:
    """A `pgnotifier.testing.MemoryServer`; at the end of the test all notifiers on it are stopped."""
    from pgnotifier.testing import MemoryServer

    with MemoryServer() as server:
        yield server


@pytest.fixture
def pgnotifier_notifier(pgnotifier_server: MemoryServer) -> MemoryNotifier:
    """A running `pgnotifier.testing.MemoryNotifier` on `pgnotifier_server`."""
    return pgnotifier_server.Notifier()
