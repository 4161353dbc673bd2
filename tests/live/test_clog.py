"""Where the server answers 58P01 to LISTEN, it is cured, and asked again (guarantee 10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier
from sick import Sick


@pytest.fixture
def sick(server: str) -> Iterator[Sick]:
    sick = Sick(server)
    yield sick
    sick.close()


def test_it_is_cured(sick: Sick, sender: psycopg.Connection[Any], channel: str) -> None:
    """Guarantee 10: at construction, and in a later `subscribe`, without a lost connection."""
    got: list[Any] = []
    with Notifier(sick.dsn) as n:
        assert (sick.refused, sick.cured) == (1, 1)
        sick.sick = True
        n.subscribe(1, channel, lambda id, channel, payload, pid: got.append(payload))
        assert (sick.refused, sick.cured) == (2, 2)
        sender.execute("select pg_notify(%s, '1')", (channel,))
        until(lambda: got == [1])
        assert n.status()["reconnects"] == 0


def test_it_cannot_be_cured(sick: Sick) -> None:
    """Guarantee 10: once is enough; then the server's error is raised."""
    sick.incurable = True
    with pytest.raises(psycopg.OperationalError, match="could not access status of transaction"):
        Notifier(sick.dsn)
    assert (sick.refused, sick.cured) == (2, 1)
