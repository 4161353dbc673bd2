"""Running `pgnotifier` as a user does: a process of its own, with pipes or on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from conftest import until

ME = [sys.executable, "-m", "pgnotifier"]
WITHOUT = "import sys; sys.modules[{0!r}] = None; from pgnotifier.cli.main import main; sys.exit(main())"


def environ(**changes: str) -> dict[str, str]:
    """The environment without what colours or redirects; `changes` on top."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "PYTHON")) and k[-6:] != "_COLOR"}
    return {**plain, "TERM": "xterm-256color", **changes}


def run(*args: str, stdin: str = "", without: str = "", **env: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error. `without`: a module that is not installed."""
    me = [sys.executable, "-c", WITHOUT.format(without)] if without else ME
    done = subprocess.run([*me, *args], input=stdin, capture_output=True, text=True, timeout=60, env=environ(**env))
    return done.returncode, done.stdout, done.stderr


def examine(dsn: str, **options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status of `doctor`, and its checks by name."""
    code, out, err = run("doctor", "--json", "--dsn", dsn, **options)
    assert err == ""
    checks = [json.loads(line) for line in out.splitlines()]
    for check in checks:
        assert list(check) == ["check", "verdict", "detail", "remedy", "facts"]
        assert check["verdict"] == "ok" or check["remedy"]
    return code, {check["check"]: check for check in checks}


@contextlib.contextmanager
def started(*args: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A running command, killed at the end if it still runs."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environ(), **options}
    process = subprocess.Popen([*ME, *args], **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def listening(process: subprocess.Popen[str]) -> None:
    """Wait until `listen` says that it listens."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("listening to "), line


class OnTerminal:
    """A command whose streams are a pseudo-terminal."""

    def __init__(self, args: list[str], env: dict[str, str]) -> None:
        self._master, slave = os.openpty()
        self.process = subprocess.Popen(
            args, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
        )
        os.close(slave)
        self.seen = b""

    def read_until(self, wanted: Callable[[str], object]) -> str:
        """Everything seen so far, once `wanted` holds for it. It is read as it comes."""
        os.set_blocking(self._master, False)

        def more() -> object:
            with contextlib.suppress(BlockingIOError, OSError):  # OSError: the other side is closed
                self.seen += os.read(self._master, 65536)
            return wanted(self.seen.decode(errors="replace"))

        until(more, 20)
        return self.seen.decode(errors="replace")

    def ended(self) -> str:
        """Everything, after the command has ended by itself."""
        self.read_until(lambda _: self.process.poll() is not None)
        before = -1
        while before != len(self.seen):
            before = len(self.seen)
            self.read_until(lambda _: True)
        return self.seen.decode(errors="replace")


@contextlib.contextmanager
def on_terminal(*args: str, without: str = "", **env: str) -> Iterator[OnTerminal]:
    """A command on a pseudo-terminal, killed at the end if it still runs."""
    me = [sys.executable, "-c", WITHOUT.format(without)] if without else ME
    terminal = OnTerminal([*me, *args], environ(**env))
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal._master)
