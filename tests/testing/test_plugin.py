"""The fixtures, in runs of pytest of their own: as users have them, with warnings as errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
PAGE = (SRC.parent / "docs" / "testing.md").read_text()
CONFTEST = re.findall(r"<!-- conftest -->\n```python\n(.*?)```", PAGE, re.DOTALL)[0]

USES = """
import threading
import pytest
from pgnotifier import Notifier
from pgnotifier.testing import MemoryNotifier, MemoryServer

seen = []

def test_a_notifier(pgnotifier_notifier, pgnotifier_server):
    got = []
    assert isinstance(pgnotifier_notifier, MemoryNotifier)
    assert pgnotifier_notifier.server is pgnotifier_server
    pgnotifier_notifier.subscribe(1, "a", lambda *a: got.append(a[2]))
    pgnotifier_server.notify("a", [1])
    pgnotifier_server.settle()
    assert got == [[1]]
    seen.append(pgnotifier_notifier)

def test_it_was_stopped():
    assert not seen[0].is_running()
    assert not [t for t in threading.enumerate() if t.name.startswith("pgnotifier-")]

def test_each_test_has_its_own(pgnotifier_server):
    assert pgnotifier_server.sent == []
    assert pgnotifier_server is not seen[0].server
"""


def run(folder: Path, test: str, *options: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """pytest on that test, with the documentation's `conftest.py`; `first` runs in its process before it."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(test)
    arguments = [str(folder), "-p", "no:randomly", "-p", "no:cacheprovider", *options]
    code = f"""if True:
        import sys
        sys.path[:0] = [{str(SRC)!r}]
        {first}
        import pytest
        sys.exit(pytest.main({arguments!r}))
    """
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("assertions", ["rewrite", "plain"])
def test_fixtures(tmp_path: Path, assertions: str) -> None:
    done = run(tmp_path, USES, "-W", "error", f"--assert={assertions}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "warning" not in done.stdout


def test_pgnotifier_was_imported_before(tmp_path: Path) -> None:
    """By a conftest or a program that calls pytest: no warning about assertions that cannot be rewritten."""
    done = run(tmp_path, USES, "-W", "error", first="import pgnotifier.testing")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout


def test_they_are_listed_with_what_they_are(tmp_path: Path) -> None:
    done = run(tmp_path, USES, "--fixtures")
    assert "pgnotifier_server" in done.stdout
    assert "MemoryNotifier" in done.stdout


def test_a_failing_test_leaves_nothing(tmp_path: Path) -> None:
    """The notifiers are stopped after a test that fails, with its failure alone in the report."""
    done = run(tmp_path, USES.replace("got == [[1]]", "(seen.append(pgnotifier_notifier), False)[1]"), "-W", "error")
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
