"""docs/recipes/flask.md: guarantee 11 under gunicorn, with forked workers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import until

from .conftest import Database
from .page import process, write

EXPECTED = ("the connection is lost: ", "not connected yet, ")


class Gunicorn:
    """The recipe's application, in a folder of its own."""

    def __init__(self, child: subprocess.Popen[str], log: Path) -> None:
        self.child, self.log = child, log
        until(lambda: child.poll() is not None or "Listening at" in self.text, 20)
        found = re.search(r"http://127.0.0.1:(\d+)", self.text)
        assert found is not None, self.text
        self.url = found[0]

    @property
    def text(self) -> str:
        return self.log.read_text()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return json.load(response)

    def of_every_worker(self, path: str, condition: Callable[[Any], object], count: int = 2) -> set[int]:
        """Ask until that many workers have given an answer that is right; their pids."""
        pids: set[int] = set()

        def asked() -> bool:
            answer = self.get(path)
            if condition(answer):
                pids.add(answer["pid"])
            return len(pids) >= count

        until(asked, 20)
        return pids


@contextmanager
def gunicorn(database: Database, folder: Path, *options: str) -> Iterator[Gunicorn]:
    # Its own listening socket is left for the interpreter to close; and see the page on Python 3.12's warning.
    quiet = ("-W", "ignore::ResourceWarning", "-W", "ignore:This process:DeprecationWarning")
    command = (*quiet, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--no-control-socket", *options)
    with process(folder, *command, DATABASE_URL=database.dsn) as child:
        yield Gunicorn(child, folder / "log")
        child.send_signal(signal.SIGTERM)
        text = (folder / "log").read_text
        try:
            assert child.wait(10) == 0, text()
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end: {text()}") from None
        said = "\n".join(line for line in text().splitlines() if not line.startswith(EXPECTED))
        for word in ("Traceback", "Exception", "Error", "SIGKILL", "Warning"):
            assert word not in said, said


@pytest.fixture
def flags(database: Database, tmp_path: Path) -> Database:
    database.execute("create table flags (name text primary key, enabled bool)")
    database.execute("insert into flags values ('old', true)")
    write("flask.md", tmp_path, "app.py", "gunicorn.conf.py")
    return database


@pytest.mark.parametrize(
    ("options", "in_master"),
    [((), False), (("--preload",), False), (("--preload", "--worker-class", "gthread"), True)],
    ids=["forked", "preload", "preload-listening"],
)
def test_every_worker_hears_every_notification(
    flags: Database, tmp_path: Path, options: tuple[str, ...], in_master: bool
) -> None:
    """Guarantees 10, 11: each worker has a session of its own, reads again after a gap, and ends cleanly."""
    if in_master:  # what the page says of a module that listens when it is imported
        with (tmp_path / "app.py").open("a") as file:
            file.write("\n\nnotifier.start()\n")
    with gunicorn(flags, tmp_path, *options, "app:app") as server:
        until(lambda: len(flags.listeners()) == 2 + in_master)
        server.of_every_worker("/flags", lambda answer: answer["flags"] == {"old": True})
        for number in range(3):
            flags.execute("select pg_notify('flags', %s)", [json.dumps({"name": f"f{number}", "enabled": True})])
        wanted = {"old": True, "f0": True, "f1": True, "f2": True}
        pids = server.of_every_worker("/flags", lambda answer: answer["flags"] == wanted)
        assert len(pids) == 2
        assert server.child.pid not in pids
        assert server.get("/health") == {"live": True, "ready": True, "problems": []}
        assert len(flags.listeners()) == 2 + in_master
        with flags.unreachable():
            flags.execute("update flags set enabled = false")
        server.of_every_worker("/flags", lambda answer: answer["flags"]["old"] is False)
    until(lambda: flags.listeners() == [])


def test_workers_wait_for_their_database(flags: Database, tmp_path: Path) -> None:
    """Guarantee 2: `connect_wait`."""
    with ExitStack() as stack:
        with flags.unreachable():
            server = stack.enter_context(gunicorn(flags, tmp_path, "app:app"))
            until(lambda: server.text.count("not connected yet") >= 2, 20)
        server.of_every_worker("/flags", lambda answer: answer["flags"] == {"old": True})
