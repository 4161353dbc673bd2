"""README.md and docs/**/*.md as the tests read them: what stands in fences, and in comments for the tests.

The reader of a page sees none of the comments:

    <!-- run                    Python that is run at that place: set-up, and checks of what the page says
    assert heard == [1]
    -->

    <!-- NAME -->               before a fence: a test of its own runs that one (OWN in test_docs.py)
    <!-- alone -->              before a fence: a program of its own, run in a process of its own
    <!-- run by tests/... -->   before a fence: the test file that runs it, and names the page
"""

from __future__ import annotations

import configparser
import doctest
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from conftest import until
from pgnotifier import lifecycle
from pgnotifier.cli import main as cli
from pgnotifier.cli.arguments import make_parser

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)])

DSN = "postgresql://localhost/app"  # what the pages call the reader's database
OTHER_COMMANDS = {"createdb", "curl", "echo", "gunicorn", "jq", "psql", "python", "sphinx-build", "uvicorn"}
OTHER_COMMANDS.add("systemctl")

_SPHINX = re.compile(r"^<!-- sphinx[^\n]*\n.*?-->", re.DOTALL | re.MULTILINE)
_PIECE = re.compile(
    r"^<!-- run\n(?P<hidden>.*?)^-->$"
    r"|^(?:<!-- (?P<mark>[^\n]*) -->\n+)?^(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Piece:
    """`line` is that before the first of `code`. What no reader sees has no mark, and `hidden`."""

    page: Path
    line: int
    language: str
    code: str
    mark: str = ""
    hidden: bool = False

    @property
    def place(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pieces(page: Path) -> list[Piece]:
    """All of a page, in order. What is for Sphinx alone (`<!-- sphinx`) is none of them."""
    text = _SPHINX.sub(lambda found: "\n" * found[0].count("\n"), page.read_text())
    found = []
    for match in _PIECE.finditer(text):
        hidden = match["hidden"] is not None
        group = "hidden" if hidden else "code"
        line = text.count("\n", 0, match.start(group))
        language = "python" if hidden else match["language"].strip()
        found.append(Piece(page, line, language, match[group], match["mark"] or "", hidden))
    return found


def fences(page: Path) -> int:
    """How many lines look like the beginning or the end of a fence, wherever they stand."""
    return len(re.findall(r"^[ >\-*]*`{3,}", _SPHINX.sub("", page.read_text()), re.MULTILINE))


def prose(page: Path) -> str:
    """A page without fences and comments."""
    return re.sub(r"^(`{3,}).*?^\1$|<!--.*?-->", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


# -- what can be run ------------------------------------------------------------------------------------------


class Page:
    """Runs a page's pieces. `stand_ins` maps what the page says to what is there; hidden pieces may add to it."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.stand_ins = {DSN: database}
        self.module = sys.modules["page"] = ModuleType("page")  # dataclasses look for it
        self.names: dict[str, Any] = self.module.__dict__
        self.names.update(dsn=database, until=until, stand_ins=self.stand_ins)
        self.environ = dict(os.environ)

    def run(self, piece: Piece) -> None:
        code = piece.code
        for said, there in self.stand_ins.items():
            code = code.replace(said, there)
        if piece.mark == "alone":
            self.alone(code)
        elif piece.language == "python":
            exec(compile("\n" * piece.line + code, piece.page, "exec", dont_inherit=True), self.names)
        elif piece.language == "pycon":
            test = doctest.DocTestParser().get_doctest(code, self.names, piece.place, str(piece.page), piece.line)
            said = io.StringIO()
            failed, _ = doctest.DocTestRunner().run(test, out=said.write, clear_globs=False)
            assert not failed, said.getvalue()
            self.names.update(test.globs)
        elif piece.language == "sql":
            with psycopg.connect(self.database, autocommit=True) as conn:
                conn.execute(code.encode())
        elif piece.language == "sh":
            for line in code.replace("\\\n", "").splitlines():
                command(line, self.database)
        elif piece.language == "json":
            for line in code.splitlines():
                json.loads(line)
        elif piece.language == "ini":
            configparser.ConfigParser().read_string(code)

    def alone(self, code: str) -> None:
        # Forking beside threads is what one page is about; Python 3.12 begins to warn of it.
        program = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
        done = subprocess.run(program, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""

    def end(self) -> None:
        for notifier in list(lifecycle._alive):
            notifier.stop()
        del sys.modules["page"]
        os.environ.clear()
        os.environ.update(self.environ)


def command(line: str, database: str) -> None:
    """Check a line of shell; run what ends by itself and changes nothing but by notifying."""
    words = shlex.split(line, comments=True)
    if not {"|", "&&", ">"}.intersection(words) and words[:1] == ["pgnotifier"] and ends_by_itself(words[1:]):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pgnotifier",
                *(re.sub(r"^postgresql://.*", database, word) for word in words[1:]),
            ],
            env={**os.environ, **environment(database)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    if ">" in words:  # into a file
        del words[words.index(">") :]
    while words:
        end = next((k for k, word in enumerate(words) if word in ("|", "&&")), len(words))
        known(words[:end])
        words = words[end + 1 :]


def ends_by_itself(words: list[str]) -> bool:
    return words in (["--help"], ["--version"]) or (words[0] in ("notify", "doctor") and words[-1] != "-")


def known(words: list[str]) -> None:
    """That there is such a command, and such extras and modules of ours."""
    while words and re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if words[:1] == ["pgnotifier"]:
        if words[-1] not in ("--help", "--version"):
            make_parser(cli.RUNS).parse_args(words[1:])
    elif "pip" in words:
        for extra in re.findall(r"(?:pgnotifier|\.)\[(\w+)\]", " ".join(words)):
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), words
    elif "-m" in words:
        assert find_spec(words[words.index("-m") + 1]), words
    else:
        assert not words or words[0] in OTHER_COMMANDS, words


def environment(database: str) -> dict[str, str]:
    conf = conninfo_to_dict(database)
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE", "password": "PGPASSWORD"}
    return {names[key]: str(value) for key, value in conf.items() if key in names}
