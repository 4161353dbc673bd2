"""How the source is laid out: which module imports which, how long files are, and how many locks there are.

The tests read the source, so they need no list of files. The core is all but the command line, `pgnotifier.testing`,
`pgnotifier.journal`, `__main__` and the top `__init__`. An `__init__` of a package is a module like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pgnotifier

MAX_FLOORS = 9
MAX_LINES = 260
MAX_LOCKS = 10
LONGER = {"notifier"}  # public methods with long docstrings
LOCKS = {"RLock", "Lock", "allocate_lock", "Condition"}
IMPURE = {"threading", "time", "random", "logging", "socket", "select", "asyncio", "psycopg"}

ROOT = Path(pgnotifier.__file__).parent


def _name(file: Path) -> str:
    """A module's name below `pgnotifier`; a package's is that of its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_name(file): file for file in ROOT.rglob("*.py")}
OUTSIDE = {"", "__main__", "cli", "testing", "journal"}
CORE = sorted(
    name for name in FILES if name not in OUTSIDE and name.split(".")[0] not in ("cli", "testing", "journal")
)


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def is_for_types(node: ast.AST) -> bool:
    test = node.test if isinstance(node, ast.If) else None
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, without what only type checkers run."""
    yield node
    below = node.orelse if isinstance(node, ast.If) and is_for_types(node) else ast.iter_child_nodes(node)
    for child in below:
        yield from nodes(child)


def addresses(name: str) -> Iterator[str]:
    """What a module imports, as dotted names from the top; of `from a import b` both `a` and `a.b`."""
    is_package = FILES[name].name == "__init__.py"
    path = ["pgnotifier", *name.split(".")]
    for node in nodes(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = node.level - is_package
            base = path[: len(path) - up] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of the core that have to be there first, but for the packages that `name` is in itself."""
    found = set()
    for address in addresses(name):
        parts = address.split(".")
        if parts[0] == "pgnotifier":
            found |= {".".join(parts[1:end]) for end in range(2, len(parts) + 1)}
    inside = {name[:place] for place, letter in enumerate(name) if letter == "."}
    return frozenset(found & set(CORE) - inside - {name})


def package(name: str) -> str:
    """The package a module is in; itself where it is one, "" at the top."""
    return name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]


def test_imports_are_found() -> None:
    """The reader of imports sees all kinds of them, and nothing that only type checkers run."""
    assert {"registry", "clock", "supervisor", "connection", "delivery"} <= imports("notifier")
    assert {"delivery.coverage", "delivery.dispatcher"} <= imports("delivery")
    assert "threads" in imports("listener")  # from . import threads
    assert "registry" in imports("shared")  # from . import registry
    assert "libpq" in imports("errors")  # below `try`
    assert "connection" not in imports("connection.session")
    assert "registry" not in imports("delivery.mailbox")  # for types only


def test_imports_go_down_only_on_a_few_floors() -> None:
    order = TopologicalSorter({name: imports(name) for name in CORE})
    floors: dict[str, int] = {}
    for name in order.static_order():  # raises CycleError, which names the circle
        floors[name] = 1 + max((floors[below] for below in imports(name)), default=0)
    assert max(floors.values()) <= MAX_FLOORS, sorted(floors.items(), key=lambda item: item[1])


def test_what_is_called_and_what_is_heard_do_not_know_each_other() -> None:
    for name in CORE:
        tops = {below.split(".")[0] for below in imports(name)}
        assert not (name.split(".")[0] == "delivery" and "connection" in tops), name
        assert not (name.split(".")[0] == "connection" and "delivery" in tops), name


def test_a_package_is_imported_by_its_own_name_only() -> None:
    """What a package offers stands in its `__init__`; the rest of it may be moved at will."""
    for name in CORE:
        for below in imports(name):
            assert package(below) in ("", below, package(name)), f"{name} imports {below}"


def test_what_is_said_to_be_pure_imports_nothing_that_acts() -> None:
    pure = [name for name in CORE if "Pure" in (ast.get_docstring(tree(name)) or "")]
    assert {"registry", "gap", "maps", "delivery.coverage"} <= set(pure)
    for name in pure:
        assert not {address.split(".")[0] for address in addresses(name)} & IMPURE, name


def test_no_file_of_the_core_is_long() -> None:
    lines = {name: len(FILES[name].read_text(encoding="utf-8").splitlines()) for name in CORE}
    assert {name: count for name, count in lines.items() if count > MAX_LINES and name not in LONGER} == {}


def test_there_are_few_locks() -> None:
    """Wherever the core names a kind of lock outside an import, it makes one."""
    found = [
        f"{name}:{node.lineno}"
        for name in CORE
        for node in nodes(tree(name))
        if (isinstance(node, ast.Name) and node.id in LOCKS)
        or (isinstance(node, ast.Attribute) and node.attr in LOCKS)
    ]
    assert 1 <= len(found) <= MAX_LOCKS, found


def test_dir_shows_the_public_names_only() -> None:
    """Guarantee 1."""
    shown = [name for name in dir(pgnotifier) if not (name.startswith("__") and name.endswith("__"))]
    assert shown == sorted(set(pgnotifier.__all__))
    for name in shown:
        assert not isinstance(getattr(pgnotifier, name), ModuleType), name
