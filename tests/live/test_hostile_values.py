"""Guarantees 2, 3, 8 and 12: values that lie about themselves, that change later, or that cannot be shown."""

from __future__ import annotations

import enum
import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from command import environ
from conftest import until
from pgnotifier import Notifier, NotifierError

Conn = psycopg.Connection[Any]


@pytest.fixture
def n(server: str) -> Iterator[Notifier]:
    with Notifier(server) as n:
        n.subscribe("one", "a", print)
        yield n


def state(n: Notifier) -> Any:
    return n.channels(), n.subscribers(), n.active_channels(), n.status()["pid"]


# -- subclasses of str --------------------------------------------------------------------------------------------


class Channel(str, enum.Enum):
    O = "orders"  # noqa: E741


class Liar(str):
    """Says something else of itself wherever it is asked."""

    def __str__(self) -> str:
        return "a lie"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return "a lie"

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 1

    def __len__(self) -> int:
        return 0

    def __contains__(self, other: object) -> bool:
        return True

    def encode(self, *_: Any) -> bytes:  # type: ignore[override]
        return b"a lie"

    def replace(self, *_: Any) -> str:  # type: ignore[override]
        return "a lie"


@pytest.mark.parametrize("name", [Channel.O, Liar("orders")], ids=["enum", "liar"])
def test_a_subclass_of_str_counts_as_its_characters(server: str, sender: Conn, name: str) -> None:
    got: list[Any] = []
    with Notifier(server) as n:
        n.subscribe("s", name, lambda *a: got.append(a[1:3]))
        assert n.active_channels() == ["orders"]
        assert [type(c) for c in n.channels()] == [str]
        sender.execute("select pg_notify('orders', '1')")
        n.notify(name, 2)
        n.notify("orders", Liar("3"))
        until(lambda: len(got) == 3)
        assert got == [("orders", 1), ("orders", 2), ("orders", 3)]
        assert type(got[0][0]) is str
        for names in (name, [name], iter((name,)), {name: 1}, ["orders", name]):
            n.mute_channels(names)
            assert n.muted_channels() == n.muted_channels(names) == ["orders"]
            n.unmute_channels(names)
        n.mute_subscriber("s", name)
        assert n.muted_subscribers(name) == {"orders": ["s"]}
        n.add_channels([name])
        assert list(n.channels()) == ["orders"]
        n.unsubscribe("s", name)
        n.remove_channels(name)
        assert n.channels() == {}


def test_what_only_pretends_to_be_a_str_is_refused(n: Notifier) -> None:
    """`unittest.mock.Mock(spec=str)` is an instance of str to `isinstance`."""
    before = state(n)
    for call in (n.notify, n.add_channels, lambda name: n.subscribe("two", name, print)):
        with pytest.raises(TypeError, match=r"str|not iterable"):
            call(Mock(spec=str))
    assert state(n) == before


# -- ids ------------------------------------------------------------------------------------------------------------


class NeverEqual:
    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 1


class CannotCompare:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("on purpose")

    def __hash__(self) -> int:
        return 1


class CannotHash:
    def __hash__(self) -> int:
        raise RuntimeError("on purpose")


WITH_ID: dict[str, Callable[[Notifier, Any], Any]] = {
    "subscribe": lambda n, id: n.subscribe(id, "a", print),
    "subscribe autorun=False": lambda n, id: n.subscribe(id, "new", print, autorun=False),
    "unsubscribe": lambda n, id: n.unsubscribe(id, "a"),
    "mute_subscriber": lambda n, id: n.mute_subscriber(id),
    "unmute_subscriber": lambda n, id: n.unmute_subscriber(id, "a"),
}


@pytest.mark.parametrize("id", [float("nan"), NeverEqual(), CannotCompare()], ids=lambda id: type(id).__name__)
@pytest.mark.parametrize("method", WITH_ID)
def test_an_id_must_be_equal_to_itself(n: Notifier, method: str, id: Any) -> None:
    before = state(n)
    with pytest.raises(TypeError, match=f"equal to itself, not {type(id).__name__}"):
        WITH_ID[method](n, id)
    assert state(n) == before


@pytest.mark.parametrize("method", WITH_ID)
def test_an_id_whose_hash_fails(n: Notifier, method: str) -> None:
    before = state(n)
    with pytest.raises(TypeError, match="hashable, not CannotHash"):
        WITH_ID[method](n, CannotHash())
    assert state(n) == before


# -- what cannot be shown -------------------------------------------------------------------------------------------


class Hidden:
    """Its `repr` raises."""

    def __repr__(self) -> str:
        raise RuntimeError("the repr fails, on purpose")


class HiddenCallable(Hidden):
    def __call__(self) -> None: ...


class HiddenUnhashable(Hidden):
    __hash__ = None  # type: ignore[assignment]


class HiddenString(str):
    __repr__ = Hidden.__repr__
    __str__ = Hidden.__repr__


SHOWN: list[Callable[[Notifier], Any]] = [
    lambda n: n.subscribe(HiddenUnhashable(), "a", print),
    lambda n: n.subscribe("one", Hidden(), print),  # type: ignore[arg-type]
    lambda n: n.subscribe("one", "a", Hidden()),  # type: ignore[arg-type]
    lambda n: n.subscribe("one", "a", HiddenCallable()),  # type: ignore[arg-type]
    lambda n: n.subscribe("one", "a", print, on_listen=Hidden()),  # type: ignore[arg-type]
    lambda n: n.subscribe("one", "a", print, deliver=Hidden()),  # type: ignore[arg-type]
    lambda n: n.subscribe("one", "a", print, loop=Hidden()),  # type: ignore[arg-type]
    lambda n: n.subscribe("one", HiddenString("x" * 64), print),
    lambda n: n.add_channels(Hidden()),  # type: ignore[arg-type]
    lambda n: n.add_channels(["a", Hidden()]),  # type: ignore[list-item]
    lambda n: n.mute_subscriber(Hidden()),
    lambda n: n.mute_subscriber("one", Hidden()),  # type: ignore[arg-type]
    lambda n: n.notify(Hidden()),  # type: ignore[arg-type]
    lambda n: n.notify("a", Hidden()),
    lambda n: n.notify("a", [Hidden()]),
    lambda n: n.notify("a", HiddenString("\0")),
    lambda n: n.stop(Hidden()),  # type: ignore[arg-type]
    lambda n: n.wait(Hidden()),  # type: ignore[arg-type]
    lambda n: Notifier("", heartbeat=Hidden()),  # type: ignore[arg-type]
    lambda n: Notifier("", retry_delay=Hidden()),  # type: ignore[arg-type]
    lambda n: Notifier("", retry_delay=(Hidden(), 1)),  # type: ignore[arg-type]
    lambda n: Notifier("", workers=Hidden()),  # type: ignore[arg-type]
    lambda n: Notifier("", decode=Hidden()),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("number", range(len(SHOWN)))
def test_an_error_about_a_value_that_cannot_be_shown(n: Notifier, number: int) -> None:
    """Guarantee 12: the error is the one that the argument deserves."""
    before = state(n)
    with pytest.raises((TypeError, ValueError, NotifierError)) as caught:
        SHOWN[number](n)
    assert "on purpose" not in str(caught.value)
    assert state(n) == before


def test_a_failing_callback_of_an_id_that_cannot_be_shown(
    server: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee 8: it is logged all the same, and the next notification comes."""
    got: list[Any] = []

    def fails(*a: Any) -> None:
        got.append(a[2])
        raise ValueError("the callback fails")

    with Notifier(server) as n:
        n.subscribe(Hidden(), channel, fails)
        n.notify(channel, 1)
        n.notify(channel, 2)
        until(lambda: got == [1, 2] and n.status()["failed"] == 2)
    assert caplog.text.count("ValueError: the callback fails") == 2
    assert "Hidden" in caplog.text


# -- callbacks that cannot be called --------------------------------------------------------------------------------


def generates(id: Any, channel: str, payload: Any, pid: int) -> Iterator[int]:
    yield 1


async def generates_later(id: Any, channel: str, payload: Any, pid: int) -> AsyncIterator[int]:
    yield 1


class Generates:
    def __call__(self, *a: Any) -> Iterator[int]:
        yield 1

    def method(self, *a: Any) -> Iterator[int]:
        yield 1


def takes(id: Any, channel: str, payload: Any, pid: int) -> None: ...
def takes_three(id: Any, channel: str, payload: Any) -> None: ...
def takes_five(id: Any, channel: str, payload: Any, pid: int, more: Any) -> None: ...
def wants_keyword(id: Any, channel: str, payload: Any, pid: int, *, more: Any) -> None: ...
def has_defaults(a: Any, b: Any = 1, c: Any = 1, d: Any = 1, e: Any = 1, *, f: Any = 1) -> None: ...


@functools.wraps(takes_five)
def injects(*a: Any) -> None:
    return takes_five(*a, "injected")


class Callables:
    def __call__(self, id: Any, channel: str, payload: Any, pid: int) -> None: ...
    def method(self, id: Any, channel: str, payload: Any, pid: int) -> None: ...
    def short(self, id: Any, channel: str, payload: Any) -> None: ...

    @staticmethod
    def static(id: Any, channel: str, payload: Any, pid: int) -> None: ...

    @classmethod
    def of_class(cls, id: Any, channel: str, payload: Any, pid: int) -> None: ...


class Short:
    def __call__(self, id: Any) -> None: ...


GENERATORS: dict[str, Any] = {
    "a generator": generates,
    "an async generator": generates_later,
    "a lambda": lambda *a: (yield),
    "a partial": functools.partial(generates),
    "a partial of a partial's": functools.partial(functools.partial(generates_later, 1), "c"),
    "an object": Generates(),
    "a method": Generates().method,
    "a partial of a method": functools.partial(Generates().method),
    "a partial of an object": functools.partial(Generates()),
}
GOOD: dict[str, Any] = {
    "a function": takes,
    "defaults": has_defaults,
    "a builtin": print,
    "a wrapper": injects,
    "an object": Callables(),
    "a method": Callables().method,
    "a static method": Callables.static,
    "a class method": Callables.of_class,
    "a partial": functools.partial(takes_five, "first"),
    "a partial with a keyword": functools.partial(wants_keyword, more=1),
    "a mock": Mock(),
    "a class": SystemError,
}
BAD: dict[str, Any] = {
    "too few": takes_three,
    "too many": takes_five,
    "a keyword": wants_keyword,
    "none": lambda: None,
    "a method": Callables().short,
    "an unbound method": Callables.method,
    "an object": Short(),
    "a partial": functools.partial(takes, "first"),
    "a class": Callables,
}


@pytest.mark.parametrize("which", GENERATORS)
def test_a_generator_function_is_refused(n: Notifier, which: str) -> None:
    """Guarantee 8: a call of it would run nothing, and count as delivered."""
    before = state(n)
    f = GENERATORS[which]
    with pytest.raises(TypeError, match="a callback must not be a generator function"):
        n.subscribe("one", "a", f)
    with pytest.raises(TypeError, match="on_listen must not be a generator function"):
        n.subscribe("one", "a", print, on_listen=f)
    assert state(n) == before


@pytest.mark.parametrize("which", GOOD)
def test_a_callback_that_takes_four_arguments(n: Notifier, which: str) -> None:
    n.subscribe("two", "b", GOOD[which])
    assert n.subscribers()["two"]["fn"] == GOOD[which]


@pytest.mark.parametrize("which", BAD)
def test_a_callback_that_does_not_take_four_arguments(n: Notifier, which: str) -> None:
    before = state(n)
    with pytest.raises(TypeError, match=r"4 positional arguments \(id, channel, payload, pid\)") as caught:
        n.subscribe("one", "a", BAD[which])
    assert repr(BAD[which])[:30] in str(caught.value)
    assert state(n) == before


def test_an_on_listen_must_take_three_arguments(n: Notifier) -> None:
    before = state(n)
    for bad in (takes, lambda: None, Short(), functools.partial(takes_three, 1)):
        with pytest.raises(TypeError, match=r"3 positional arguments \(id, channel, gap\)"):
            n.subscribe("one", "a", print, on_listen=bad)  # type: ignore[arg-type]
    assert state(n) == before
    n.subscribe("one", "a", print, on_listen=takes_three)  # type: ignore[arg-type]


# -- a dbconf that changes ------------------------------------------------------------------------------------------


def test_a_mapping_changed_later_does_not_count(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 2: neither for the connection that sends, nor for the next one that listens."""
    conf: dict[str, Any] = conninfo_to_dict(server)
    got: list[Any] = []
    with Notifier(conf) as n:
        n.subscribe("s", channel, lambda *a: got.append(a[2]))
        conf.clear()
        conf.update(host="127.0.0.1", port=1)
        n.notify(channel, 1)
        until(lambda: got == [1])
        pid = n.status()["pid"]
        sender.execute("select pg_terminate_backend(%s)", (pid,))
        until(lambda: n.status()["reconnects"] == 1)
        n.stop()
        n.start()
        n.notify(channel, 2)
        until(lambda: got == [1, 2])


# -- loud by default ------------------------------------------------------------------------------------------------

FAILS = """
import sys, time
from pgnotifier import Notifier

def heard(id, channel, payload, pid):
    raise ValueError("the callback fails")

with Notifier(sys.argv[1]) as n:
    n.subscribe("s", "loud", heard)
    n.notify("loud")
    while not n.status()["failed"]:
        time.sleep(0.001)
"""


def test_a_failing_callback_is_seen_without_any_configuration(server: str) -> None:
    """Guarantee 8: a script that configures no logging shows the traceback, and nothing else, on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", FAILS, server], capture_output=True, text=True, timeout=20, env=environ()
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "subscriber 's' failed on channel 'loud'\nTraceback (most recent call last):" in done.stderr
    assert done.stderr.endswith("ValueError: the callback fails\n")
    assert "connected" not in done.stderr
