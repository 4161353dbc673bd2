"""Guarantee 7: decode and encode."""

from __future__ import annotations

import ast
import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
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
    if type(a) is set:
        own = {v: v for v in a}
        return all(same(own[v], v) for v in b)
    return True


def exactly(value: Any) -> Any:
    """Something to compare by: types and the signs of zeros count, the order of a set does not."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [exactly(v) for v in value]
    if kind is dict:
        return kind, [(exactly(k), exactly(v)) for k, v in value.items()]
    if kind is set:
        return kind, sorted((exactly(v) for v in value), key=repr)
    return kind, repr(value) if kind in (float, complex) else value


@settings(max_examples=500, deadline=None)
@given(values)
def test_what_is_encoded_comes_back(value: object) -> None:
    """Guarantee 7."""
    assert same(decode(encode(value)), value)


def reference(text: str) -> Any:
    """JSON without constants, else a literal, else the text: guarantee 7 in its own words. It may warn."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


pieces = st.sampled_from(
    [*list("[]{}(),:\"'\\ \n\t0159eEjJ.-+_xbonNaI"), "null", "true", "None", "True", "or", "set()"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(pieces, max_size=12).map("".join) | texts | values.map(repr))
def test_decode_is_literal_eval_and_json(text: str) -> None:
    """Guarantee 7."""
    value = decode(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert exactly(value) == exactly(reference(text))


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
    """Guarantee 7."""
    assert same(decode(text), value)


def test_what_cannot_be_encoded_is_refused() -> None:
    """Guarantee 7."""
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
    """Guarantee 7."""
    for text in ("\ud83d\ude00", "'\ud83d\ude00", "\"\ud83d\ude00'"):
        assert decode(encode(text)) == text


# -- a great many texts and values, from a faster generator than Hypothesis ------------------------------------

NUMBERS = """0 1 -1 +1 --1 ~1 9 007 00 0_7 1_000 1__0 0x1F 0xg 0o17 0b1 1. .5 -.5 -0 -0.0 0e0 1.e1 1.5e3 1E-3 1e
1e999 -1e999 2j 1.5J 1e5j 1+2j -1-2j 1l 1or 1if 0xfor 99999999999999999999999"""
STRINGS = r"""'' "" 'a' "a" 'é' "€" b'x' b"\xff" rb'\d' u'a' r'\d' f'a' f'{1}' b'é' '\q' '\8' '\400' '\/' "\/" '\x41'
'\x4' '\N{BULLET}' '\N{NOBODY}' '\u12' "\ud83d\ude00" "\ud83d" '\ud83d' '\0' "\b\f" '''a''' ''' '\d'"""
WORDS = "None True False null true false NaN Infinity -Infinity nan inf set() set frozenset() ... {[]} {{}:1} a ** :="
PIECES = [
    *NUMBERS.split(),
    *STRINGS.split(),
    *WORDS.split(),
    *r"""[](){},:[](){},:[](){},:+-*/~.=@#;\\'"!$?`""",
    *("'''a\nb'''", '"""a"""', '"""', "'a\\\nb'", "'\t'", '"\t"', "#x\n", r"'\N{DIGIT ONE}'"),
    *(" ", "\t", "\n", "\r", "\f", "\v", "\0", "\xa0", "\ufeff", "\u2028", "\\\n", "  ", "\r\n"),
    *(" and ", " or ", " not ", " if ", " else ", " in ", " is ", "lambda:", "await ", "yield "),
]


def random_letter(rng: random.Random) -> str:
    return chr(rng.randrange(rng.choice((0x80, 0x80, 0x100, 0x3000, 0xD800, 0xE000, 0x110000))))


def random_string(rng: random.Random) -> str:
    return "".join(random_letter(rng) for _ in range(rng.randrange(6)))


def random_float(rng: random.Random) -> float:
    return rng.choice((0.0, -0.0, math.inf, -math.inf, 5e-324, 1.5, rng.uniform(-1, 1) * 10.0 ** rng.randrange(300)))


SCALARS: list[Callable[[random.Random], Any]] = [
    lambda rng: rng.choice((None, True, False)),
    lambda rng: rng.randrange(-9, 9),
    lambda rng: rng.getrandbits(rng.randrange(1, 200)) * rng.choice((1, -1)),
    random_string,
    random_float,
    lambda rng: rng.getrandbits(32).to_bytes(4, "big")[rng.randrange(5) :],
    lambda rng: complex(random_float(rng), random_float(rng)),
]


def random_value(rng: random.Random, depth: int, kinds: tuple[type, ...] = (list, tuple, dict, set)) -> Any:
    """`(tuple,)`: one that can be a key; `(list, dict)`: one that JSON writes."""
    if depth <= 0 or rng.random() < 0.4:
        return rng.choice(SCALARS[: 4 if kinds == (list, dict) else None])(rng)
    kind, size = rng.choice(kinds), rng.randrange(5)
    if kind is dict:
        keys = [random_string(rng) if set not in kinds else random_value(rng, 1, (tuple,)) for _ in range(size)]
        return {key: random_value(rng, depth - 1, kinds) for key in keys}
    return kind(random_value(rng, depth - 1, (tuple,) if kind is set else kinds) for _ in range(size))


def random_text(rng: random.Random) -> str:
    """Pieces of the two grammars; letters; or what Python or JSON writes for a value, most often spoilt."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(("", "", " ")).join(rng.choices(PIECES, k=rng.randrange(8)))
    if kind < 0.5:
        return "".join(random_letter(rng) for _ in range(rng.randrange(12)))
    if kind < 0.75:
        text = repr(random_value(rng, 3))
    else:
        value, indent = random_value(rng, 3, (list, dict)), rng.choice((None, None, 1, "\t"))
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=indent)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(("", rng.choice(PIECES), random_letter(rng))) + text[at + rng.randrange(3) :]
    return text


def new_rng() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def test_a_hundred_thousand_texts() -> None:
    """Guarantee 7: JSON, else what `ast.literal_eval` gives, else the text; warnings are errors meanwhile."""
    rng = new_rng()
    texts = [random_text(rng) for _ in range(100_000)]
    found = [decode(text) for text in texts]
    kinds: dict[str, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text, value in zip(texts, found, strict=True):
            expected = reference(text)
            if type(value) is not type(expected) or repr(value) != repr(expected):  # sets may differ in order
                assert exactly(value) == exactly(expected), ascii(text)
            kind = "the text" if type(value) is str and value == text else type(value).__name__
            kinds[kind] = kinds.get(kind, 0) + 1
    print(kinds)
    met = {"the text", "NoneType", "bool", "int", "float", "complex", "str", "bytes", "tuple", "list", "dict", "set"}
    assert met <= kinds.keys()
    assert kinds["the text"] < 85_000


def test_twenty_thousand_values_come_back() -> None:
    """Guarantee 7: of the same type, all the way down."""
    rng = new_rng()
    for _ in range(20_000):
        value = random_value(rng, 4)
        assert same(decode(encode(value)), value), ascii(value)


# -- the longest payloads that PostgreSQL lets through ---------------------------------------------------------

LONGEST = 7999  # bytes
SMALL_STACK = 1024 * 1024  # bytes; the least that a build of CPython in wide use gives a thread (Alpine's)


def size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def fill(unit: str, start: str = "", end: str = "") -> str:
    """`unit` as often as there is room for it, and then blanks."""
    text = start + unit * ((LONGEST - size(start + end)) // size(unit)) + end
    return text + " " * (LONGEST - size(text))


def nest(start: str, middle: str, end: str, levels: int = LONGEST) -> str:
    levels = min(levels, (LONGEST - size(middle)) // size(start + end))
    return fill(" ", start * levels + middle + end * levels)


NESTS = [
    *(("[", "", "]"), ("(", "", ")"), ("{", "", "}"), ("(", "1", ",)"), ("{1:", "1", "}"), ('{"":', "1", "}")),
    *(("[(", "", ")]"), ("[{1:(", "1", ",)}]"), ("[-1,", "1", "]"), ("(1+", "1j", ")"), ("f'{", "1", "}'")),
    *(("[", "x y", "]"), ("[", "\0", "]"), ("\n[", "1", "]\n"), ("set(", "", ")"), ("{", "1", ",}")),
]
UNITS = r"""- ~ + 1+ 1- 1j+ 1-1j+ 1** 1< 1, 1 9 9_ 1_0 0x 0 1e9, -1, 'é', None, null, é # \ [] [[], (1, {1: [ ( { ] )
} [( lambda: a. a( a[ a: a:= (a:= * ** @ ; : , . .. % 'a' '' "a" b'a' ''' " ' f'{ f'{1}' '\d' '\N{BULLET}' '\ud800'
rb'' \/ \N{ \u \x \\ 1or'' 0xfor''"""
CHAINS = [
    *UNITS.split(),
    *("\0", "\f", "\v", "\t", "\n", "\r", "\r\n", "\\\n", "\\\r\n", " \n", "\n ", "\n\t", "1\f", "#\n", "\ufeff"),
    *("\U0001f600", "\u2028", "\ud800", r"'\d' ", "'a' 'b' ", "b'a' 'a' ", "not ", "1 and ", "1 or 2, ", "1 not in "),
    *("1 if ", "1 if 1 else ", "if 1:", "if 1:\n ", "[i for i in ", "lambda a=", "yield ", "await "),
]
AROUND = [("", ""), ("", "1"), ("[", "1]"), ("'", "'"), ('"', '"')]
HOSTILE = [
    *(nest(*parts, levels) for parts in NESTS for levels in (60, 95, 199, 201, LONGEST)),
    *(fill(unit, *around) for unit in CHAINS for around in AROUND),
    fill("f", "0x"),
    fill("3", "0."),
    fill("9", "1e"),
    fill("1", "-"),
    fill("1", "\ufeff"),
    fill("A", r"'\N{", "}'"),
]


def test_the_longest_payloads() -> None:
    """Guarantee 7: whatever the bytes, never an error, and none takes long."""
    assert {size(text) for text in HOSTILE} == {LONGEST}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [reference(text) for text in HOSTILE]
    for text, wanted in zip(HOSTILE, expected, strict=True):
        began = time.perf_counter()
        value = decode(text)
        took = time.perf_counter() - began
        assert took < 1, ascii(text[:50])
        assert type(value) is type(wanted), ascii(text[:50])
        try:
            assert exactly(value) == exactly(wanted), ascii(text[:50])
        except RecursionError:
            pass  # too deep for a comparison


def test_the_longest_payloads_on_a_small_stack() -> None:
    """Guarantee 7. In a process of its own: where the stack does not suffice, that dies."""
    script = f"""if True:
        import sys, threading
        sys.path[:0] = {[str(Path(__file__).parent)]}
        from test_payload import HOSTILE, decode

        def run():
            for text in HOSTILE:
                last[0] = ascii(text[:50])
                decode(text)
            last[0] = "done"

        last = [""]
        threading.stack_size({SMALL_STACK})
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        print(last[0])
    """
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("action", ["error", "always"])
def test_no_warning_from_eight_threads_at_once(action: Any) -> None:
    """Guarantee 7: nothing is shown, the value does not depend on the filters, and they are as before."""
    rng = new_rng()
    warning = [piece for piece in PIECES if "\\" in piece or "or" in piece or "if" in piece]
    texts = [f"[{rng.choice(warning)}, {rng.choice(warning)}]" for _ in range(300)] + [
        random_text(rng) for _ in range(300)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [exactly(reference(text)) for text in texts]
    wrong: list[str] = []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait(10)
        for text, wanted in zip(texts, expected, strict=True):
            if exactly(decode(text)) != wanted:
                wrong.append(ascii(text))

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter(action)
        filters, before = warnings.filters, list(warnings.filters)
        threads = [threading.Thread(target=run) for _ in range(8)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert warnings.filters is filters
        assert list(filters) == before
        assert shown == []
    assert wrong == []


def test_eight_threads_with_the_garbage_collector_in_between() -> None:
    """Guarantee 7: never raises. `ast` counts its recursion for all threads together on 3.11 (CPython's gh-106905).

    A collection that runs Python code lets another thread in, in mid-parse; `SystemError` is what came of it.
    """
    text = "(1, [2, (3, {'a': (4,)})], -5, 'x')"
    wanted = exactly(reference(text))
    wrong: list[str] = []
    end = time.monotonic() + 2

    def run() -> None:
        while time.monotonic() < end and not wrong:
            try:
                if exactly(decode(text)) != wanted:
                    wrong.append("another value")
            except BaseException as error:
                wrong.append(repr(error))

    def in_python(phase: str, info: dict[str, int]) -> None:
        for _ in range(20):
            pass

    threads = [threading.Thread(target=run) for _ in range(8)]
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(in_python)
    gc.set_threshold(20)
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.callbacks.remove(in_python)
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantees 7 and 11: the child decodes, and its warnings are filtered as before."""
    inside, go_on = threading.Event(), threading.Event()
    literal_eval = ast.literal_eval

    def held(text: str) -> Any:
        inside.set()
        go_on.wait(20)
        return literal_eval(text)

    filters = list(warnings.filters)
    monkeypatch.setattr(ast, "literal_eval", held)
    thread = threading.Thread(target=decode, args=(r"'\d'",))
    thread.start()
    try:
        assert inside.wait(10)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(5)
                ast.literal_eval = literal_eval
                code = 0 if warnings.filters == filters and decode(r"'\d'") == r"\d" else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        go_on.set()
        thread.join()
