"""Where the microseconds of one notification go: a clock at each step, from the sender's statement to the callback.

`python -m tests.bench.trace URI callback|stream [COUNT]`, with a notifier that is idle in between. Medians; the
clocks themselves cost about a microsecond each. It replaces functions of the library: a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from .bursts import LIMIT, ROOT, Counter, new_channel

STEPS = ("readable", "read", "post", "woken", "awake", "called")


class Trace:
    """The first moment of each step since the listener was last woken, and all of them for each notification."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.rows: list[dict[str, float]] = []

    def note(self, step: str) -> None:
        self.at.setdefault(step, perf_counter())

    def clock(self, owner: Any, name: str, step: str) -> None:
        """Note when `owner.name` is called."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.note(step)
            return function(*args, **kwargs)

        setattr(owner, name, timed)

    def clock_select(self, selector: Any) -> None:
        """Begin anew when a wait of the listener has found something."""
        select = selector.select

        def timed(*args: Any, **kwargs: Any) -> Any:
            found = select(*args, **kwargs)
            if found:
                self.at.clear()
                self.note("readable")
            return found

        selector.select = timed

    def called(self, payload: Any) -> None:
        self.note("called")
        self.rows.append({"sent": float(payload), **self.at})

    def report(self, title: str) -> None:
        rows = [row for row in self.rows[len(self.rows) // 10 :] if all(step in row for step in STEPS)]
        print(f"{title}: {median(r['called'] - r['sent'] for r in rows) * 1e6:.0f} µs")
        for before, step in zip(("sent", *STEPS), STEPS, strict=False):
            print(f"  {before} to {step}: {median(r[step] - r[before] for r in rows) * 1e6:.1f}")


class Waiter:
    """A thread's lock that notes when it is released, and when the thread is awake."""

    def __init__(self, trace: Trace, lock: Any) -> None:
        self._trace, self._lock = trace, lock

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        got: bool = self._lock.acquire(*args, **kwargs)
        self._trace.note("awake")
        return got

    def release(self) -> None:
        self._trace.note("woken")
        self._lock.release()


def traced(dsn: str, kind: str, count: int = 1_000) -> None:
    from pgnotifier import Notifier, flag
    from pgnotifier.connection import exchange, waiting
    from pgnotifier.delivery import posting, turns

    trace, channel, counter = Trace(), new_channel(), Counter(count)
    trace.clock_select(waiting.PortableSelector)
    trace.clock(exchange.Exchange, "read", "read")
    trace.clock(posting.Posting, "post", "post")
    made: Callable[[], Any] = turns.allocate_lock

    def made_waiter() -> Any:
        return Waiter(trace, made())

    def fn(payload: Any) -> None:
        trace.called(payload)
        counter(payload)

    def begin(worker: Any) -> None:
        worker.waiter = made_waiter()
        worker.waiter.acquire()

    if kind == "stream":
        flag.allocate_lock = made_waiter  # type: ignore[assignment]
    else:
        turns.Worker.__post_init__ = begin  # type: ignore[method-assign]
    with Notifier(dsn) as n:
        if kind == "stream":
            stream = n.listen(channel)
            stream.get(LIMIT)  # `Listening`
            threading.Thread(target=lambda: [fn(event[1]) for event in stream], daemon=True).start()
        else:
            n.subscribe("trace", channel, lambda id, channel, payload, pid: fn(payload))
        folder = ROOT if __package__ == "tests.bench" else ROOT / "tests"
        arguments = [sys.executable, "-m", f"{__package__}.sender", dsn, channel, str(count), "0.002"]
        subprocess.run(arguments, check=True, cwd=folder, timeout=LIMIT)
        counter.wait()
    trace.report(kind)


if __name__ == "__main__":
    traced(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
