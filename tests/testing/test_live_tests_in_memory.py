"""The stand-in is checked against the real one: the tests of tests/live, as they stand, on a server in memory."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest

from pgnotifier.testing import MemoryServer

from .sql import SqlConnection

LIVE = Path(__file__).parents[1] / "live"

# What is left out, and why; all else is run.
LEFT_OUT = {
    "test_delivery": {
        "test_a_burst_is_read_in_large_batches": "is about libpq's buffer",
        "test_a_name_the_server_refuses": "creates a database",
        "test_changes_under_traffic_lose_nothing": "nothing holds its writer back in memory, and it takes 20 s",
        "test_no_server_leaves_nothing": "is about the way to a server",
    },
    "test_gaps": {
        "test_the_heartbeat_notices_that_the_session_listens_no_longer": "sends SQL of its own",
    },
    "test_coroutines": {},
    "test_slow_subscribers": {
        "test_a_million_of_one_transaction": "is about speed",
        "test_memory_stops_growing_with_a_thousand_that_are_stuck": "is about speed",
        "test_the_server_never_refuses_a_notify": "is about the server's queue",
        "test_why_callbacks_do_not_run_on_the_reading_thread": "is about the server's queue",
        "test_one_id_never_runs_on_two_workers": "sends so fast here that unsubscribing drops nearly all",
        "test_a_hanging_callback_does_not_keep_the_interpreter": "runs a script",
    },
    "test_threads": {
        "test_an_interrupt_in_a_callback_stops_the_notifier": "asks the server for its sessions",
        "test_an_interrupt_in_a_callback_leaves_stderr_alone": "runs a script",
    },
    "test_life_cycle": {
        "test_exit_is_quiet": "runs a script",
        "test_exit_with_ten_stuck_notifiers_takes_a_second": "runs a script",
        "test_autostart_false_makes_a_stopped_notifier": "asks how often its dbconf is called",
        "test_autostart_false_cannot_start": "is about the way to a server",
        "test_daemon_false_keeps_running_until_stop": "runs a script",
        "test_ctrl_c_ends_a_daemon_false_script_without_a_traceback": "runs a script",
        "test_ctrl_c_interrupts_wait": "runs a script",
        "test_as_async_runs_and_cancels": "has no notifier",
    },
    "test_model": {},
    "test_errors": {
        "test_bases": "has no notifier",
        "test_a_password_is_not_in_the_error": "is about the way to a server",
        "test_a_password_is_not_in_the_error_of_a_later_connection": "is about the way to a server",
        "test_a_wrong_password_is_not_shown": "is about the way to a server",
        "test_a_password_is_not_shown_in_a_life": "is about the way to a server",
        "test_a_dbconf_that_cannot_be_says_what_is_wrong": "is about the way to a server",
    },
}


def load(name: str) -> ModuleType:
    """A copy of that module, whose `Notifier` may be another."""
    spec = importlib.util.spec_from_file_location(f"in_memory_{name}", LIVE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MODULES = {name: load(name) for name in LEFT_OUT}
for _name, _module in MODULES.items():
    for _key, _value in vars(_module).items():
        if _key.startswith("test_") and callable(_value) and _key not in LEFT_OUT[_name]:
            globals()[f"{_name}_{_key.removeprefix('test_')}"] = _value
        elif type(_value).__name__ == "FixtureFunctionDefinition" or hasattr(_value, "_pytestfixturefunction"):
            globals()[_key] = _value


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryServer]:
    with MemoryServer() as memory:
        for module in MODULES.values():
            monkeypatch.setattr(module, "Notifier", memory.Notifier)
        monkeypatch.setattr(psycopg, "connect", lambda *a, **k: SqlConnection(memory))
        yield memory


@pytest.fixture(autouse=True)
def server(memory: MemoryServer) -> str:
    return "host=nowhere.invalid"


@pytest.fixture
def sender(memory: MemoryServer) -> Any:
    return SqlConnection(memory)


def test_what_is_left_out_is_there() -> None:
    for name, left_out in LEFT_OUT.items():
        assert left_out.keys() <= vars(MODULES[name]).keys()
