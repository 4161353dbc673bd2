"""The recipes' code, taken from their pages: each block of it stands after a comment with its name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"
_BLOCK = re.compile(r"^<!-- (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> dict[str, str]:
    """`{name: code}` of the page's blocks, in their order."""
    found = _BLOCK.findall((RECIPES / page).read_text())
    assert len(dict(found)) == len(found), f"{page} has two blocks of one name"
    return dict(found)


def load(page: str, *names: str, **given: Any) -> dict[str, Any]:
    """The names that these blocks of Python make, run one after the other as one module; `given` are there before."""
    module: dict[str, Any] = {"__name__": page.removesuffix(".md"), **given}
    for name in names:
        exec(compile(blocks(page)[name], f"{page}:{name}", "exec", dont_inherit=True), module)
    return module


def write(page: str, folder: Path, *names: str) -> None:
    """Save these blocks as files, each under its name."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(blocks(page)[name])


@contextmanager
def process(folder: Path, *command: str, log: str = "log", **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`python -W error command…` in that folder, its output in the file `log`; killed at the end."""
    with (folder / log).open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-W", "error", *command],
            cwd=folder,
            stdout=output,
            stderr=output,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait(10)
