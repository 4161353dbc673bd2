"""Contract 7: decode and encode."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnotifier import decode, encode

texts = st.text(alphabet=st.characters(exclude_categories=()), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | texts
    | st.binary(max_size=10)
)
hashables = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b) or a != b:
        return False
    if type(a) in (list, tuple):
        return all(map(same, a, b))
    if type(a) is dict:
        return all(same(k, j) and same(v, w) for (k, v), (j, w) in zip(a.items(), b.items(), strict=True))
    return True


@settings(max_examples=3000, deadline=None)
@given(values)
def test_what_is_encoded_comes_back(value: object) -> None:
    assert same(decode(encode(value)), value)


def reference(text: str) -> Any:
    """JSON without constants, else a literal, else the text: the contract's own words."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


pieces = st.sampled_from(
    [*list("[]{}(),:\"'\\ \n\t0159eEjJ.-+_xbonNaI"), "null", "true", "None", "True", "or", "set()"]
)


@settings(max_examples=5000, deadline=None)
@given(st.lists(pieces, max_size=12).map("".join) | texts | values.map(repr))
def test_decode_is_literal_eval_and_json(text: str) -> None:
    assert repr(decode(text)) == repr(reference(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("null", None),
        ("None", None),
        ('{"a": null}', {"a": None}),
        ("{'a': (1, 2)}", {"a": (1, 2)}),
        ("plain text", "plain text"),
        ("", ""),
        ("NaN", "NaN"),
        ('{"a": Infinity}', '{"a": Infinity}'),
        (r'"\/"', "/"),
        (r"'\/'", r"\/"),
        ("1or 2", "1or 2"),
    ],
)
def test_examples(text: str, value: object) -> None:
    assert same(decode(text), value)


@pytest.mark.parametrize(
    "unit", ["[", "(", "{", "-", "~", "[[],", "1+", "'a'", '"\\', "9", "\\", "not ", "\x00", "é"]
)
def test_hostile_texts_never_raise(unit: str) -> None:
    for text in (unit * (7999 // len(unit)), unit * 90 + "1", "(" * 3999 + ")" * 3999):
        decode(text)


def test_what_cannot_be_encoded_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 1
    for _ in range(65):
        deep = (deep,)
    for value in (float("nan"), [float("nan")], complex("nan"), loop, deep):
        with pytest.raises(ValueError, match="cannot encode"):
            encode(value)
    for value in (object(), frozenset(), type("S", (str,), {})("x"), [b"", bytearray()]):
        with pytest.raises(TypeError, match="cannot encode"):
            encode(value)
    assert same(decode(encode(deep[0])), deep[0])


def test_two_adjacent_surrogates_stay_two() -> None:
    for text in ("\ud83d\ude00", "'\ud83d\ude00", "\"\ud83d\ude00'"):
        assert decode(encode(text)) == text
