"""Builds the sdist, and the wheel from it; then sees what is in them and uses each in an environment of its own.

    python tests/packaging/check.py        # in an environment with build, twine and pyright[nodejs]

Guarantee 1: what is distributed, and how it is described.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

ROOT = Path(__file__).parents[2]
NAME = "pgnotifier-1.0.0"
NOTHING_ELSE = {"pgnotifier", "psycopg", "pyrsistent", "typing-extensions", "pip"}
SHORT = ["tests/unit/test_maps_and_backoff.py", "tests/live/test_fanout.py"]  # pure, and with a server


def main() -> None:
    began = monotonic()
    with TemporaryDirectory(prefix="pgnotifier-packaging-") as folder:
        here = Path(folder)
        run(sys.executable, "-m", "build", "--outdir", here / "dist", ROOT, quiet=True)
        wheel, sdist = here / "dist" / f"{NAME}-py3-none-any.whl", here / "dist" / f"{NAME}.tar.gz"
        steps: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            (check_built_files, (wheel, sdist)),
            (check_wheel_content, (wheel,)),
            (check_sdist_content, (sdist,)),
            (check_metadata, (wheel,)),
            (check_wheel, (wheel, here)),
            (check_sdist, (sdist, here)),
        ]
        for step, args in steps:
            step(*args)
            print(f"{monotonic() - began:5.1f} s  {step.__name__}: ok", flush=True)


def check_built_files(wheel: Path, sdist: Path) -> None:
    assert sorted(wheel.parent.iterdir()) == sorted([wheel, sdist]), list(wheel.parent.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, quiet=True)


def check_wheel_content(wheel: Path) -> None:
    """The package, whole, and its metadata; nothing else."""
    about = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    expected = {f"{NAME}.dist-info/{name}" for name in about}
    expected |= {path.removeprefix("src/") for path in tracked() if path.startswith("src/")}
    assert "pgnotifier/py.typed" in expected
    same(expected, set(zipfile.ZipFile(wheel).namelist()))


def check_sdist_content(sdist: Path) -> None:
    """Everything that is kept, but for the dot-files; and .gitignore, which the build reads."""
    expected = {path for path in tracked() if not path.startswith(".")} | {".gitignore", "PKG-INFO"}
    with tarfile.open(sdist) as tar:
        same({f"{NAME}/{path}" for path in expected}, set(tar.getnames()))


def check_metadata(wheel: Path) -> None:
    about = metadata(wheel)
    assert (about["Name"], about["Version"]) == ("pgnotifier", "1.0.0")
    assert (about["License-Expression"], about["Requires-Python"]) == ("MIT", ">=3.10")
    needed = [r for r in about.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert needed == ["psycopg>=3.2.10", "pyrsistent>=0.20"], needed
    assert all(about[field] for field in ("Summary", "Author", "Keywords"))
    urls = dict(line.split(", ") for line in about.get_all("Project-URL", []))
    same({"Homepage", "Documentation", "Changelog", "Source", "Issues"}, set(urls))
    text = str(about.get_payload())
    assert text.startswith("# pgnotifier")
    assert "](docs/" not in text, "a link of README.md leads nowhere outside of the repository"
    home = urls["Homepage"]
    for url in [*urls.values(), *(part.split(")")[0] for part in text.split("](") if part.startswith(home))]:
        path = url.removeprefix(home).removeprefix("/blob/main/").removeprefix("/tree/main/").partition("#")[0]
        assert path in ("", "/issues") or (ROOT / path).exists(), f"{url}: there is no such file"


def check_wheel(wheel: Path, here: Path) -> None:
    """First without an extra, then imported, run as a command and on a server, and its public types complete."""
    python = environment(here / "wheel", wheel)
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json", cwd=here))
    same(NOTHING_ELSE, {p["name"].lower().replace("_", "-") for p in listed} - {"setuptools"})
    imported = subprocess.run([python, "-c", "import pgnotifier"], cwd=here, capture_output=True, text=True)
    assert imported.returncode == 0 or "pip install 'pgnotifier[binary]'" in imported.stderr, imported.stderr
    install(python, f"{wheel}[demo]")
    where = run(python, "-c", "import pgnotifier; print(pgnotifier.__file__)", cwd=here).strip()
    assert Path(where).is_relative_to(here / "wheel"), where
    for command in ([python, "-m", "pgnotifier"], [python.parent / "pgnotifier"]):
        assert run(*command, "--version", cwd=here) == "pgnotifier 1.0.0\n"
        assert "examples:" in run(*command, "--help", cwd=here)
    assert "10,000 received, in order" in run(python.parent / "pgnotifier", "demo", cwd=here)
    check_types(python, here)


# What belongs to no public name; mypy checks it. Pyright reports it because `Notifier` imports it.
MODULES = ("calls", "changes", "connection", "deferred", "delivery", "listener", "reading", "shared", "starting")
INTERNAL = (*(f"pgnotifier.{name}." for name in (*MODULES, "supervisor")), "pgnotifier.health.examine")


def check_types(python: Path, here: Path) -> None:
    """Every public name and what belongs to it has a type that all checkers read alike."""
    env = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    pyright = [sys.executable, "-m", "pyright", "--verifytypes", "pgnotifier", "--ignoreexternal", "--outputjson"]
    done = subprocess.run(pyright, cwd=here, env=env, capture_output=True, text=True)
    report = json.loads(done.stdout)["typeCompleteness"]
    public = [symbol for symbol in report["symbols"] if not symbol["name"].startswith(INTERNAL)]
    vague = [
        f"{symbol['name']}: {' '.join(d['message'] for d in symbol['diagnostics'])}"
        for symbol in public
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]
    ]
    assert not vague, "\n".join(["without a full type:", *vague])
    names = {symbol["name"] for symbol in public}
    assert len(names) > 100
    assert {"pgnotifier.notifier.Notifier.subscribe", "pgnotifier.types.Callback"} <= names


def check_sdist(sdist: Path, here: Path) -> None:
    """Enough to build and install from, and to run the tests from, which see the installed package."""
    with tarfile.open(sdist) as tar:
        tar.extractall(here, filter="data")
    source = here / NAME
    python = environment(here / "sdist", f"{source}[test]")
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    run(*pytest, "--collect-only", cwd=source, quiet=True)
    run(*pytest, *SHORT, cwd=source, quiet=True)


def tracked() -> list[str]:
    return run("git", "-C", ROOT, "ls-files", "-z").strip("\0").split("\0")


def metadata(wheel: Path) -> Message:
    return Parser().parsestr(zipfile.ZipFile(wheel).read(f"{NAME}.dist-info/METADATA").decode())


def environment(folder: Path, wanted: object) -> Path:
    """A new virtual environment with `wanted` installed; its Python."""
    run(sys.executable, "-m", "venv", folder)
    install(folder / "bin" / "python", wanted)
    return folder / "bin" / "python"


def install(python: Path, wanted: object) -> None:
    run(python, "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check", wanted, quiet=True)


def run(*command: object, cwd: Path | None = None, quiet: bool = False) -> str:
    """The command's standard output; where it fails, all that it said. `quiet`: warnings are not shown."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert quiet or not done.stderr or command[0] == "git", f"{command}: {done.stderr}"
    return done.stdout


def same(expected: set[str], found: set[str]) -> None:
    assert found == expected, f"missing: {sorted(expected - found)}; too much: {sorted(found - expected)}"


if __name__ == "__main__":
    main()
