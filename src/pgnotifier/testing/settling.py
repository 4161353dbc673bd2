"""Waiting until nothing is left to do: all notifications are handed over, and all calls have returned."""

from __future__ import annotations

import asyncio
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

from psycopg import Notify

if TYPE_CHECKING:
    from .notifier import MemoryNotifier
    from .server import MemoryServer

MARK = "\0"  # a channel that nobody can subscribe to
LOOK = 0.01  # seconds between two looks at state that no thread announces

_tokens = count(1)


def settle(server: MemoryServer, deadline: float, timeout: float) -> None:
    """Do as `MemoryServer.settle`, until `deadline` (monotonic seconds); errors name `timeout`."""
    while True:
        notifiers = server.notifiers()
        if any(n._supervisor.in_a_callback() for n in notifiers):
            raise RuntimeError(
                "settle() in a callback would wait for that callback itself; on an event loop's thread use "
                "`await asyncio.to_thread(server.settle)`"
            )
        before = _seen(server, notifiers)
        for n in notifiers:
            reach(server, n, deadline)
        for _ in range(2):  # a call may cause another on a notifier that was idle; a second one shows in `_seen`
            for n in notifiers:
                n._supervisor.wait_idle(deadline, streams=False)  # their reader may be the thread that waits here
        if monotonic() > deadline:
            raise TimeoutError(_unsettled(notifiers, timeout))
        if _seen(server, notifiers) == before:
            return


def _seen(server: MemoryServer, notifiers: list[MemoryNotifier]) -> Any:
    """Return a value that differs after anything was sent, called or changed."""
    state = {id(n): (id(n._supervisor.shared.registry), n._received, n._dispatcher.counts()) for n in notifiers}
    return server.commits, state


def reach(server: MemoryServer, n: MemoryNotifier, deadline: float) -> None:
    """Wait until all that was sent to `n` so far is in its mailboxes, or `n` can't connect. Raises `TimeoutError`."""
    token, marked = str(next(_tokens)), None
    with server.lock:
        while n.is_running() and not server._barred(n._door):
            if token in n._passed:
                n._passed.discard(token)
                return
            if monotonic() > deadline:
                raise TimeoutError("a notifier has not received what was sent to it" + _why(server))
            session = n._supervisor.session
            conn = server._connections.get(session.pid) if session is not None else None
            if conn is not None and conn is not marked:
                marked = conn
                conn.push([Notify(MARK, token, 0)])
            server.changed.wait(LOOK)


def _why(server: MemoryServer) -> str:
    return ": the server is frozen" if server.frozen else ""


def _unsettled(notifiers: list[MemoryNotifier], timeout: float) -> str:
    waiting = sum(n._dispatcher.counts()["pending"] for n in notifiers)
    text = f"not settled within {timeout:g} seconds: {waiting} notifications wait, or callbacks have not returned"
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return text
    return f"{text}; on an event loop's thread use `await asyncio.to_thread(server.settle)`"
