"""What must pass for mypy and pyright, as users write it (guarantees 3, 8, 10). Checked, never run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Hashable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypedDict

from psycopg import AsyncConnection, Connection
from pyrsistent import PMap, pmap
from typing_extensions import assert_never, assert_type

import pgnotifier
from pgnotifier import (
    AsyncNotifier,
    Gap,
    Health,
    Listening,
    Notification,
    Notifier,
    Stream,
    as_async,
    assoc_in,
    decode,
    dissoc_in,
    encode,
    filterkv,
)
from pgnotifier.journal import AsyncConsumer, Consumer, Entry, Journal
from pgnotifier.types import (
    AsyncCallback,
    AsyncOnListen,
    Callback,
    Channels,
    ChannelState,
    DbConf,
    Decoder,
    Deliver,
    OnListen,
    Status,
    SubscriberState,
    Url,
)

# -- construction ---------------------------------------------------------------------------------------------------


def credentials() -> dict[str, object]:
    return {"host": "localhost", "password": "..."}


class UrlOfSqlalchemy:  # as it is declared there
    def render_as_string(self, hide_password: bool = True) -> str:
        return "postgresql+psycopg://localhost/app"


def confs() -> list[DbConf]:
    frozen: Mapping[str, str] = {"host": "localhost"}
    return [
        "",
        "postgresql://localhost/app",
        {"host": "localhost", "port": 5432},
        frozen,
        credentials,
        lambda: "host=a",
        UrlOfSqlalchemy(),
        url,
    ]


def url() -> Url:
    return UrlOfSqlalchemy()


Notifier()
Notifier({"host": "localhost", "port": 5432, "connect_timeout": 5})
Notifier(credentials)
Notifier(lambda: "host=localhost")
Notifier(decode=str)
Notifier(decode=json.loads)
Notifier(decode=decode)
Notifier(decode=lambda text: text.upper())
Notifier("", workers=4, max_pending=10, heartbeat=None, retry_delay=(1, 60), daemon=False, autostart=False)
Notifier(url(), connect_wait=60)
Notifier(url)
AsyncNotifier(url(), connect_wait=0.5)

with Notifier() as n:
    assert_type(n, Notifier)

AsyncNotifier("", decode=str, workers=4, max_pending=10, heartbeat=None, retry_delay=(1, 60))


async def coroutines() -> None:
    async def heard(id: str, channel: str, payload: int, pid: int) -> None: ...

    async with AsyncNotifier(credentials) as a:
        assert_type(a, AsyncNotifier)
        await a.subscribe("s", "a", heard, on_listen=lambda id, channel, gap: None, deliver="latest")
        await a.notify("a", {"id": 1})
        assert_type(await a.wait(1), bool)
        assert_type(a.status()["pid"], int | None)
        async with a.listen("a", "b", id="s", deliver="latest") as stream:
            assert_type(stream, pgnotifier.AsyncStream)
            assert_type(await stream.get(1), pgnotifier.Notification | pgnotifier.Listening)
            async for event in stream:
                match event:
                    case pgnotifier.Notification(channel, _, pid):
                        assert_type((channel, pid), tuple[str, int])
                    case pgnotifier.Listening(channels, gaps):
                        assert_type(channels, tuple[str, ...])
                        assert_type(gaps, tuple[Gap, ...])
                    case _:
                        assert_never(event)
            await stream.close()
        await a.stop(drain=True)


# -- callbacks ------------------------------------------------------------------------------------------------------


class Row(TypedDict):
    id: int


class Cache:
    def changed(self, id: str, channel: str, payload: Row, pid: int) -> None: ...

    async def changed_async(self, id: Hashable, channel: str, payload: Any, pid: int) -> None: ...

    def read(self, id: object, channel: str, gap: Gap | None) -> bool:
        return gap is None or gap.dropped is None

    @staticmethod
    def static(id: object, channel: str, payload: object, pid: int) -> None: ...

    @classmethod
    def of_class(cls, id: object, channel: str, payload: object, pid: int) -> None: ...


class Handler:
    def __call__(self, id: int, channel: str, payload: object, pid: int) -> int:
        return pid


class AsyncHandler:
    async def __call__(self, id: int, channel: str, payload: object, pid: int) -> int:
        return pid


def other_names(who: tuple[str, int], where: str, what: dict[str, Any], sender: int) -> None: ...


def positional(a: Any, b: str, c: Any, d: int, /) -> None: ...


def more(id: Any, channel: str, payload: Any, pid: int, times: int = 1, *, loud: bool = False) -> None: ...


def anything(*args: object, **options: object) -> None: ...


def with_connection(conn: object, id: Any, channel: str, payload: Any, pid: int) -> None: ...


def with_option(id: Any, channel: str, payload: Any, pid: int, *, conn: object) -> None: ...


async def coroutine(id: Any, channel: str, payload: Any, pid: int) -> str:
    return channel


async def gap_coroutine(id: Any, channel: str, gap: Gap | None) -> None: ...


def gap_function(a: object, b: str, c: Gap | None) -> None: ...


n.subscribe("a", "orders", other_names)
n.subscribe(("a", 1), "orders", positional, False)
n.subscribe(1, "orders", more, autorun=False)
n.subscribe(None, "orders", anything, on_listen=anything)
n.subscribe("a", "orders", lambda id, channel, payload, pid: None)
n.subscribe("a", "orders", lambda *a: print(*a), on_listen=lambda *a: print(*a))
n.subscribe("a", "orders", lambda _id, _channel, payload, _pid: payload["id"] + 1)
n.subscribe("a", "orders", print, on_listen=print)
n.subscribe("a", "orders", partial(with_connection, object()))
n.subscribe("a", "orders", partial(with_option, conn=object()))
n.subscribe("a", "orders", Cache().changed, on_listen=Cache().read)
n.subscribe("a", "orders", Cache().changed_async, on_listen=gap_coroutine, loop=asyncio.new_event_loop())
n.subscribe("a", "orders", Cache.static)
n.subscribe("a", "orders", Cache.of_class)
n.subscribe("a", "orders", Handler(), deliver="latest")
n.subscribe("a", "orders", AsyncHandler())
n.subscribe("a", "orders", coroutine, on_listen=gap_function, deliver="all")
n.subscribe("a", "orders", partial(coroutine), on_listen=lambda id, channel, gap: gap.since if gap else None)


# -- annotating with the library's types ----------------------------------------------------------------------------


def register(fn: Callback, on_listen: OnListen | None = None, deliver: Deliver = "all") -> None:
    n.subscribe("a", "orders", fn, on_listen=on_listen, deliver=deliver)


def register_async(fn: AsyncCallback, on_listen: AsyncOnListen) -> Callback:
    n.subscribe("a", "orders", fn, on_listen=on_listen)
    waited: Awaitable[object] = fn("a", "orders", None, 1)
    assert waited is not None
    return fn


def make(conf: DbConf, decoder: Decoder, channels: Channels) -> Notifier:
    made = Notifier(conf, decode=decoder)
    made.add_channels(channels)
    return made


register(other_names, gap_function, "latest")
register(coroutine, gap_coroutine)
register_async(coroutine, gap_coroutine)
register_async(Cache().changed_async, gap_coroutine)
make(credentials, json.loads, {"orders", "customers"})

callbacks: dict[str, Callback] = {"orders": Handler(), "customers": lambda id, channel, payload, pid: None}
for name, fn in callbacks.items():
    n.subscribe("a", name, fn)

# -- the registry ---------------------------------------------------------------------------------------------------

for channels in ("orders", ["orders"], ("orders",), {"orders"}, (c for c in "abc"), {"orders": 1}.keys()):
    n.add_channels(channels)
    n.mute_subscriber(1, channels)
    n.remove_channels(channels, autorun=False)
n.mute_channels()
n.unmute_subscriber(("a", 1))

assert_type(n.channels(), dict[str, ChannelState])
assert_type(n.channels()["orders"]["subscribers"]["a"]["fn"], Callback)
assert_type(n.channels()["orders"]["mute"], bool)
assert_type(n.subscribers(), dict[Hashable, SubscriberState])
assert_type(n.subscribers()["a"]["channels"]["orders"]["sub_mute"], bool)
assert_type(n.active_channels(), list[str])
assert_type(n.muted_channels(["orders"]), list[str])
assert_type(n.muted_subscribers(), dict[str, list[Hashable]])
assert_type(n.SYSCHAN, str)
assert_type(Notifier.SYSCHAN, str)

# -- streams --------------------------------------------------------------------------------------------------------

with n.listen("orders", "customers", id=("mine", 1), deliver="latest") as stream:
    assert_type(stream, Stream)
    for event in stream:
        assert_type(event, Notification | Listening)
        match event:
            case Listening(channels=names_of, gaps=gaps):
                assert_type(names_of, tuple[str, ...])
                assert_type(gaps, tuple[Gap, ...])
            case Notification(channel=channel_of, pid=pid_of):
                assert_type(channel_of, str)
                assert_type(pid_of, int)
        match event:
            case Listening():
                assert_type(event.gaps, tuple[Gap, ...])
            case _:
                assert_type(event, Notification)
        match event:
            case Listening(channels_, gaps_):
                assert_type(gaps_, tuple[Gap, ...])
            case Notification(name_, payload_, pid_):
                assert_type(pid_, int)
assert_type(stream.get(), Notification | Listening)
assert_type(stream.get(timeout=1), Notification | Listening)
assert_type(stream.id, Hashable)
n.mute_subscriber(stream)
stream.close()

# -- the rest -------------------------------------------------------------------------------------------------------

assert_type(n.status(), Status)
assert_type(n.status()["pid"], int | None)
assert_type(n.status()["since"], datetime)
assert_type(n.status()["longest_call"], tuple[Hashable, str, float] | None)
assert_type(n.status()["confirmed"], datetime | None)
assert_type(n.health(), Health)
assert_type(n.health(max_call=5).problems, tuple[str, ...])
live, ready, problems = AsyncNotifier().health()
assert_type(ready, bool)
plain: Mapping[str, object] = n.status()
for field, value in n.status().items():
    print(field, value)
assert_type(n.wait(), bool)
assert_type(n.is_running(), bool)
n.notify("orders")
n.notify("orders", {"id": 1})
n.stop(1, drain=True)


def told(id: object, channel: str, gap: Gap | None) -> None:
    if gap is not None and gap.reason == "overflow":
        assert_type(gap.dropped, int | None)
        assert_type(gap.since, datetime)


try:
    n.subscribe("a", "x" * 64, print)
except pgnotifier.InvalidChannel as error:
    value_error: ValueError = error
except pgnotifier.UnknownChannel as error:
    key_error: KeyError = error
except pgnotifier.CannotListen as error:
    root: pgnotifier.NotifierError = error

assert_type(encode({"a": 1}), str)
text_of: Callable[[object], str] = encode
as_async(coroutine, 1, "orders", None, 1).result(1)

names: PMap[str, int] = pmap({"a": 1})
assert_type(assoc_in(names, ["b"], 2), PMap[str, int])
assert_type(dissoc_in(names, ["a"]), PMap[str, int])
assert_type(filterkv(names, lambda key, value, least: value >= least, 1), PMap[str, int])


# -- the journal ----------------------------------------------------------------------------------------------------


def delivered(entry: Entry, conn: Connection[Any]) -> None:
    assert_type(entry.id, int)
    assert_type(entry.at, datetime)
    conn.execute("select %s", [entry.payload["id"]])


async def delivered_there(entry: Entry, conn: AsyncConnection[Any]) -> None:
    await conn.execute("select %s", [entry.channel])


def lost(name: str, channel: str, gap: Gap) -> None: ...


def gives_up(entry: Entry, error: BaseException, tries: int) -> bool:
    return tries > 3


def keeps_a_journal(n: Notifier, journal: Journal, conn: Connection[Any]) -> None:
    assert_type(journal.publish("orders", {"id": 1}), int)
    assert_type(journal.publish("orders", {"id": 1}, conn), int)
    consumer = journal.consume(n, "a", "orders", delivered, start="beginning", on_gap=lost, on_error=gives_up)
    assert_type(consumer, Consumer)
    with consumer:
        consumer.status()["delivered"] + 1


async def keeps_a_journal_there(n: AsyncNotifier, journal: Journal, conn: AsyncConnection[Any]) -> None:
    assert_type(await journal.publish("orders", {"id": 1}, conn), int)
    async with await journal.consume(n, "a", ["orders", "customers"], delivered_there, on_error="skip") as consumer:
        assert_type(consumer, AsyncConsumer)
