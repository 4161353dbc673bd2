"""What the fault tests share: one cluster, traffic, a proxy, a seed."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

import pytest

from conftest import until
from pgnotifier import Notifier

from .proxy import Proxy
from .servers import Server
from .traffic import Stream, Traffic

if sys.platform == "win32":
    collect_ignore_glob = ["test_*.py"]  # freezing and killing processes is POSIX


@pytest.fixture(scope="session")
def cluster() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def db(cluster: Server) -> Iterator[Server]:
    """The cluster, running."""
    cluster.start()
    yield cluster
    if not cluster.is_running():
        cluster.start()


@pytest.fixture
def proxy(db: Server) -> Iterator[Proxy]:
    with Proxy(db.address) as proxy:
        yield proxy


@pytest.fixture
def traffic(db: Server, channel: str) -> Iterator[Traffic]:
    """Numbers on `channel`, from before the test until it stops them."""
    with Traffic(db.dsn, [channel]) as traffic:
        yield traffic


@pytest.fixture
def stream(channel: str) -> Stream:
    return Stream(channel)


@pytest.fixture
def rng() -> random.Random:
    """Random moments; PGNOTIFIER_TEST_SEED repeats those of a run that failed."""
    seed = int(os.environ.get("PGNOTIFIER_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"PGNOTIFIER_TEST_SEED={seed}")
    return random.Random(seed)


def until_reconnected(n: Notifier, pid: int | None) -> None:
    """Wait until the listener is connected with a session that is not `pid`."""
    until(lambda: n.status()["connected"] and n.status()["pid"] != pid)


def until_lost(n: Notifier, pid: int | None) -> None:
    """Wait until the listener knows that session `pid` is lost."""
    until(lambda: not n.status()["connected"] or n.status()["pid"] != pid)
