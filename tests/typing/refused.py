"""What mypy and pyright must refuse: a mark is an error expected there, and a mark without an error is reported.

Checked, never run.
"""

from __future__ import annotations

from typing import Any

from pgnotifier import Gap, Notifier
from pgnotifier.journal import Journal
from pgnotifier.types import AsyncCallback, Callback, DbConf

# -- construction ---------------------------------------------------------------------------------------------------

n = Notifier()
Notifier(5432)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Notifier(lambda host: "")  # type: ignore[arg-type,misc]  # pyright: ignore[reportArgumentType]
Notifier("", str)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Notifier(decode=len, heartbeat="10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Notifier(decode=lambda: None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Notifier(retry_delay=1.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
conf: DbConf = b"host=localhost"  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

# -- callbacks ------------------------------------------------------------------------------------------------------


def too_few(id: Any, channel: str, payload: Any) -> None: ...


def too_many(id: Any, channel: str, payload: Any, pid: int, more: int) -> None: ...


def by_name(*, id: Any, channel: str, payload: Any, pid: int) -> None: ...


def other_types(id: Any, channel: int, payload: Any, pid: int) -> None: ...


def right(id: Any, channel: str, payload: Any, pid: int) -> None: ...


async def coroutine(id: Any, channel: str, payload: Any) -> None: ...


def no_none(id: Any, channel: str, gap: Gap) -> None: ...


class Handler:
    def heard(self, id: Any, channel: str, payload: Any, pid: int, more: int) -> None: ...

    def __call__(self, id: Any) -> None: ...


n.subscribe("a", "c", too_few)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", too_many)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", by_name)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", other_types)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", coroutine)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", lambda a, b, c: None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", lambda a, b, c, d, e: None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", Handler())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", Handler().heard)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", Handler)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", right("a", "c", 1, 2))  # type: ignore[arg-type,func-returns-value]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
n.subscribe("a", ["c"], right)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe(["a"], "c", right)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", right, deliver="last")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", right, on_listen=right)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", right, on_listen=no_none)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.subscribe("a", "c", right, True, right)  # type: ignore[arg-type,call-arg]  # pyright: ignore[reportCallIssue]
awaited: AsyncCallback = right  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


def called_with_names(fn: Callback) -> None:
    fn(id=1, channel="c", payload=None, pid=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# -- the registry and the rest --------------------------------------------------------------------------------------

n.add_channels(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.add_channels(b"c")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.mute_subscriber()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
n.status()["uptime"]  # type: ignore[typeddict-item]  # pyright: ignore
n.channels()["c"]["subs"]  # type: ignore[typeddict-item]  # pyright: ignore
n.stop("soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
n.stop(1, True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
n.notify(1, "x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def told(gap: Gap) -> None:
    gap.dropped + 1  # type: ignore[operator]  # pyright: ignore[reportOptionalOperand]
    gap.reason = "muted"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    if gap.reason == "lost":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        pass


# -- the journal ----------------------------------------------------------------------------------------------------


def keeps(journal: Journal) -> None:
    journal.consume(n, "a", "c", right)  # type: ignore[arg-type]  # pyright: ignore
    journal.consume(n, "a", "c", print, start="end")  # type: ignore[call-overload]  # pyright: ignore
