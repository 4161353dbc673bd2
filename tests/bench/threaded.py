"""Readers that call on a thread. Each imports what it reads with when it is used; `readers` says what they share."""

from __future__ import annotations

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
        self.listen(dsn, channel, fn)

    def listen(self, dsn: str, channel: str, fn: Fn, **options: Any) -> None:
        from pgnotifier import Notifier

        self.notifier = Notifier(dsn, **options)
        self.notifier.subscribe("bench", channel, lambda id, channel, payload, pid: fn(payload))

    def add(self, channel: str) -> float:
        began = perf_counter()
        self.notifier.subscribe("bench", channel, print)
        return perf_counter() - began

    def close(self) -> None:
        self.notifier.stop()


class WithOrjson(Ours):
    """The same with `decode=orjson.loads`."""

    packages = (*Ours.packages, "orjson")

    def __init__(self, dsn: str, channel: str, fn: Fn) -> None:
        import orjson

        self.listen(dsn, channel, fn, decode=orjson.loads)


class WithMsgspec(Ours):
    """The same with `decode=msgspec.json.decode`."""

    packages = (*Ours.packages, "msgspec")

    def __init__(self, dsn: str, channel: str, fn: Fn) -> None:
        import msgspec

        self.listen(dsn, channel, fn, decode=msgspec.json.decode)


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
