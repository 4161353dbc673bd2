"""Readers that call on an event loop, each in a thread of its own."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from typing import Any

from .threaded import LIMIT, Bare, Ours


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
