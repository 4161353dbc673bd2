"""The readers that are compared, behind one face. Each imports what it reads with when it is used.

`Reader(dsn, channel, fn)` listens when it has been made; `fn(payload)` is called with the decoded payload.
`add(channel)` listens to one more channel and returns how long that took, where the reader can. `close()` ends it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

Fn = Callable[[Any], Any]
LIMIT = 10.0  # seconds for anything to begin or end


class Ours:
    """pgnotifier as it stands here, with its defaults."""

    packages = ("pgnotifier", "psycopg", "pyrsistent")

    def __init__(self, dsn: str, channel: str, fn: Fn) -> None:
        from pgnotifier import Notifier

        self.notifier = Notifier(dsn)
        self.notifier.subscribe("bench", channel, lambda id, channel, payload, pid: fn(payload))

    def add(self, channel: str) -> float:
        began = perf_counter()
        self.notifier.subscribe("bench", channel, print)
        return perf_counter() - began

    def close(self) -> None:
        self.notifier.stop()


class OurStream(Ours):
    """The same, read by a thread from a stream."""

    def __init__(self, dsn: str, channel: str, fn: Fn) -> None:
        from pgnotifier import Notifier

        self.notifier = Notifier(dsn)
        self.stream = self.notifier.listen(channel)
        self.stream.get(LIMIT)  # `Listening`
        threading.Thread(target=self.run, args=(fn,), daemon=True).start()

    def run(self, fn: Fn) -> None:
        for event in self.stream:
            fn(event.payload)  # type: ignore[union-attr]


class Old(Ours):
    """pgnotifier 0.0.10, in an environment of its own."""

    def __init__(self, dsn: str, channel: str, fn: Fn) -> None:
        from pgnotifier.notify import Notifier  # type: ignore[import-not-found,unused-ignore]
        from psycopg.conninfo import conninfo_to_dict

        self.notifier = Notifier(conninfo_to_dict(dsn))
        self.notifier.subscribe("bench", channel, lambda id, channel, payload, pid: fn(payload))


class Bare:
    """`for n in conn.notifies()` in a thread: the baseline of guarantee 15 with `json.loads`."""

    packages = ("psycopg",)

    def __init__(self, dsn: str, channel: str, fn: Fn, decode: Callable[[str], Any] | None = json.loads) -> None:
        self.dsn, self.channel, self.fn, self.decode = dsn, channel, fn, decode
        self.listening = threading.Event()
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self.guard, daemon=True)
        self.thread.start()
        self.listening.wait()
        if self.failure is not None:
            raise self.failure

    def guard(self) -> None:
        import psycopg

        try:
            self.run()
        except psycopg.OperationalError as error:  # close() ends the session
            self.failure = error
        finally:
            self.listening.set()

    def run(self) -> None:
        import psycopg

        fn = self.fn
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            self.pid = conn.info.backend_pid
            conn.execute(f'LISTEN "{self.channel}"'.encode())
            self.listening.set()
            if self.decode is None:
                for n in conn.notifies():
                    fn(n.payload)
            else:
                loads = self.decode
                for n in conn.notifies():
                    fn(loads(n.payload))

    def add(self, channel: str) -> float:
        raise NotImplementedError

    def close(self) -> None:
        import psycopg

        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute("select pg_terminate_backend(%s)", (self.pid,))
        self.thread.join(LIMIT)


class Raw(Bare):
    """The same, without decoding."""

    def __init__(self, dsn: str, channel: str, fn: Fn) -> None:
        super().__init__(dsn, channel, fn, None)


class Async(Bare):
    """`async for n in conn.notifies()` of psycopg's AsyncConnection."""

    def run(self) -> None:
        asyncio.run(self.main())

    async def main(self) -> None:
        import psycopg

        fn, loads = self.fn, json.loads
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            self.pid = conn.info.backend_pid
            await conn.execute(f'LISTEN "{self.channel}"'.encode())
            self.listening.set()
            async for n in conn.notifies():
                fn(loads(n.payload))


class OurAsyncStream(Bare):
    """pgnotifier's `AsyncNotifier.listen`, read by a task."""

    packages = Ours.packages

    def run(self) -> None:
        asyncio.run(self.main())

    async def main(self) -> None:
        from pgnotifier import AsyncNotifier

        self.loop, self.ending = asyncio.get_running_loop(), asyncio.Event()
        async with AsyncNotifier(self.dsn) as notifier, notifier.listen(self.channel) as stream:
            await stream.get(LIMIT)  # `Listening`
            self.listening.set()
            task = asyncio.ensure_future(self.read(stream))
            await self.ending.wait()
            task.cancel()

    async def read(self, stream: Any) -> None:
        fn = self.fn
        async for event in stream:
            fn(event.payload)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.ending.set)
        self.thread.join(LIMIT)


class Asyncpg(Bare):
    """asyncpg's `add_listener`."""

    packages = ("asyncpg",)

    def run(self) -> None:
        asyncio.run(self.main())

    async def main(self) -> None:
        import asyncpg

        fn, loads = self.fn, json.loads
        self.loop, self.ending = asyncio.get_running_loop(), asyncio.Event()
        self.conn = await asyncpg.connect(self.dsn)
        await self.conn.add_listener(self.channel, lambda conn, pid, channel, payload: fn(loads(payload)))
        self.listening.set()
        await self.ending.wait()
        await self.conn.close()

    def add(self, channel: str) -> float:
        async def timed() -> float:
            began = perf_counter()
            await self.conn.add_listener(channel, print)
            return perf_counter() - began

        return asyncio.run_coroutine_threadsafe(timed(), self.loop).result()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.ending.set)
        self.thread.join(LIMIT)


class AsyncpgFromThread(Asyncpg):
    """asyncpg's `add_listener`, called from a thread, as `subscribe` can be."""

    def add(self, channel: str) -> float:
        began = perf_counter()
        asyncio.run_coroutine_threadsafe(self.conn.add_listener(channel, print), self.loop).result()
        return perf_counter() - began


class AsyncpgListen(Asyncpg):
    """asyncpg-listen's NotificationListener."""

    packages = ("asyncpg-listen", "asyncpg")

    async def main(self) -> None:
        import asyncpg
        import asyncpg_listen

        fn, loads = self.fn, json.loads
        self.loop, self.ending = asyncio.get_running_loop(), asyncio.Event()

        async def handler(n: Any) -> None:
            if isinstance(n, asyncpg_listen.Notification):
                fn(loads(n.payload))

        class Announcing(asyncpg.Connection):
            async def add_listener(conn, channel: str, callback: Any) -> None:
                await super().add_listener(channel, callback)
                self.listening.set()

        listener = asyncpg_listen.NotificationListener(
            asyncpg_listen.connect_func(self.dsn, connection_class=Announcing)
        )
        task = asyncio.ensure_future(listener.run({self.channel: handler}))
        await self.ending.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def add(self, channel: str) -> float:
        raise NotImplementedError


READERS: dict[str, type[Any]] = {
    "ours": Ours,
    "ours, stream": OurStream,
    "ours, async stream": OurAsyncStream,
    "psycopg": Bare,
    "psycopg, not decoded": Raw,
    "psycopg async": Async,
    "asyncpg": Asyncpg,
    "asyncpg-listen": AsyncpgListen,
    "0.0.10": Old,
}
CHANGERS = READERS | {"asyncpg from a thread": AsyncpgFromThread}  # and one that differs in changes only
