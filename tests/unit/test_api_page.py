"""docs/api.md has every public name with its very signature, and nothing else.

A fence of `pyi` there holds signatures as `there_is` writes them: functions without `self`, fields as `name: type`,
and values of types as `Name = type`. Lines may break anywhere. Members belong to the last class under that heading.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, is_typeddict

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
MODULES = ["pgnotifier", "pgnotifier.types", "pgnotifier.journal", "pgnotifier.testing"]
NOT_CONSTRUCTED = {"Stream", "AsyncStream", "Consumer", "AsyncConsumer", "Transaction"}  # by users
SAID_IN_WORDS = {"AsyncCallback", "AsyncOnListen"}  # that they return a coroutine
ATTRIBUTES = {  # that users may read, of objects
    "Notifier": ["SYSCHAN: Final[str]", "daemon: bool"],
    "AsyncNotifier": ["SYSCHAN: Final[str]"],
    "Stream": ["channels: tuple[str, ...]"],
    "MemoryNotifier": ["server: MemoryServer"],
    "AsyncMemoryNotifier": ["server: MemoryServer"],
    "MemoryServer": ["sent: list[Sent]"],
}
INTERNAL = {  # what the library itself calls: no underscore, and yet not public
    "Stream": {"poll", "over", "late", "subscription", "closing"},
    "Consumer": {"start"},
}


def annotation(value: Any) -> str:
    value = getattr(value, "__forward_arg__", value)
    return value if isinstance(value, str) else inspect.formatannotation(value)


def signature(kind: str, name: str, function: Any) -> str:
    parts, bare = [], True
    found = inspect.signature(function)
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and bare:
            parts.append("*")
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL):
            bare = False
        text = ("*" if parameter.kind is parameter.VAR_POSITIONAL else "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            default = parameter.default
            text += f" = {getattr(default, '__name__', repr(default).removeprefix('datetime.'))}"
        parts.append(text)
        if parameter.kind is parameter.POSITIONAL_ONLY:
            parts = [part for part in parts if part != "/"] + ["/"]
    returns = "" if kind == "class" else f" -> {annotation(found.return_annotation)}"
    return f"{kind} {name}({', '.join(parts)}){returns}"


def members(cls: type) -> Iterator[str]:
    yield from ATTRIBUTES.get(cls.__name__, ())
    if is_typeddict(cls):
        yield from (f"{name}: {annotation(type_)}" for name, type_ in inspect.get_annotations(cls).items())
        return
    for name, value in vars(cls).items():
        if name in INTERNAL.get(cls.__name__, ()) or (name.startswith("_") and name != "__call__"):
            continue
        getter = getattr(value, "fget", None) or getattr(value, "func", None)  # of a property, plain or cached
        if inspect.isfunction(getter):
            yield f"{name}: {annotation(inspect.signature(getter).return_annotation)}"
        elif inspect.isfunction(value):
            kind = "async def" if inspect.iscoroutinefunction(value) else "def"
            if name != "__call__" or cls.__name__ not in SAID_IN_WORDS:
                yield signature(kind, name, value)


def bases(cls: type) -> str:
    """Those of an error; for a private one, what that stands for."""
    shown = [b for base in cls.__bases__ for b in (base.__bases__ if base.__name__.startswith("_") else [base])]
    return ", ".join(b.__name__ if b.__module__ != "psycopg" else f"psycopg.{b.__name__}" for b in shown)


def there_is() -> dict[str, str]:
    """`{name: signature}` of all that is public; of a value of a type, its `repr`."""
    found: dict[str, str] = {}
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                found[name] = signature("def", name, value)
            elif not inspect.isclass(value):
                found[name] = f"{name} = {value!r}"
            elif issubclass(value, Exception):
                found[name] = f"class {name}({bases(value)})"
            else:
                bare = name in NOT_CONSTRUCTED or is_typeddict(value) or "Protocol" in bases(value)
                found[name] = f"class {name}" if bare else signature("class", name, value)
                for member in members(value):
                    found[f"{name}.{called(member)}"] = member
    return found


def called(entry: str) -> str:
    match = re.match(r"(?:class |async def |def )?(\w+)", entry)
    assert match, entry
    return match[1]


def page_says() -> dict[str, str]:
    found: dict[str, str] = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        cls = ""
        for fence in re.findall(r"^```pyi\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            for entry in re.split(r"\n(?![ )])", fence.rstrip()):
                name = called(entry)
                if entry.startswith("class "):
                    cls = name
                elif cls and " = " not in entry.partition("(")[0]:
                    name = f"{cls}.{name}"
                assert name not in found, f"{name} stands on the page twice"
                found[name] = entry
    return found


def normal(entry: str) -> str:
    """Without what does not matter: where lines break, and which quotes strings have."""
    for prefix in ("class ", "async def ", "def "):
        if entry.startswith(prefix):
            head = entry.removeprefix(prefix)
            if "(" not in head or (prefix == "class " and ":" not in head):
                return " ".join(entry.split())
            return prefix + ast.unparse(ast.parse(f"def {head}: ..."))
    return ast.unparse(ast.parse(entry))


EXPECTED, SAID = there_is(), page_says()


def test_the_page_has_every_public_name() -> None:
    missing = {name: entry for name, entry in EXPECTED.items() if name not in SAID}
    lines = "".join(f"\n    {name}: {entry}" for name, entry in missing.items())
    assert not missing, f"docs/api.md lacks these. Add each to a fence of `pyi`, and say what it does:{lines}"


def test_the_page_has_nothing_else() -> None:
    more = sorted(SAID.keys() - EXPECTED.keys())
    assert not more, f"docs/api.md has what is not public: {', '.join(more)}"


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() & SAID.keys()))
def test_a_signature_is_right(name: str) -> None:
    entry = SAID[name]
    if " = " in EXPECTED[name].partition("(")[0]:  # a value of `pgnotifier.types`
        types = importlib.import_module("pgnotifier.types")
        assert eval(entry.partition(" = ")[2], vars(types)) == getattr(types, name), f"{name} is {EXPECTED[name]}"
        return
    assert normal(entry) == normal(EXPECTED[name]), f"docs/api.md must say:\n    {EXPECTED[name]}"
