"""docs/internals.md says what the code says: its tables of phases, of mailbox states, of files, locks and events."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import pytest

from pgnotifier.connection import lifetime
from pgnotifier.delivery import mailbox

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/pgnotifier"
PAGE = (ROOT / "docs/internals.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines, f"no table below {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize(
    ("heading", "states", "following"),
    [
        ("Phases", lifetime.Phase, lifetime.NEXT),
        ("Mailbox states", mailbox.State, mailbox.NEXT),
    ],
)
def test_the_tables_of_states(heading: str, states: type[Enum], following: dict[Enum, frozenset[Enum]]) -> None:
    rows = table(heading)
    assert [(code(name)[0], meaning) for name, meaning, _ in rows] == [(s.name, s.value) for s in states]
    assert {code(name)[0]: {*code(then)} for name, _, then in rows} == {
        state.name: {after.name for after in following[state]} for state in states
    }


def test_the_table_of_files() -> None:
    named = [name for files, _ in table("Layout") for name in code(files)]
    assert len(named) == len({*named})
    found = set()
    for path in [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.sql")]:
        name = path.relative_to(SOURCE).as_posix()
        if not path.name.startswith("__"):
            found.add(next((d for d in ("cli/", "testing/") if name.startswith(d)), name))
    assert {*named} == found


def test_the_table_of_locks() -> None:
    """Every file that makes a lock has a row."""
    named = {name for _, where, _, _ in table("Locks") for name in code(where) if name.endswith(".py")}
    makes = re.compile(r"(?:RLock|allocate_lock|Lock)[()]")
    assert named == {
        p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py") if makes.search(p.read_text(encoding="utf-8"))
    }


def test_the_table_of_events() -> None:
    """Every event has a row here, and one for users."""
    made = {
        name
        for path in SOURCE.rglob("*.py")
        if "cli" not in path.parts and "testing" not in path.parts
        for name in re.findall(r'"event": "(\w+)"', path.read_text(encoding="utf-8"))
    }
    assert {code(event)[0] for event, _ in table("Where to add an event")} == made
    watching = (ROOT / "docs/guide/watching.md").read_text(encoding="utf-8")
    assert made <= set(re.findall(r"^\| `(\w+)` \|", watching, re.MULTILINE))


def test_what_the_page_names_exists() -> None:
    """Every `Class.name` of the page is in the code of a class of that name."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)[`(]", PAGE):
        if owner not in ("Connection", "Thread"):  # psycopg's and Python's
            bodies = re.findall(rf"^class {owner}\b.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
            assert any(re.search(rf"\b{name}\b", body) for body in bodies), f"{owner}.{name}"
