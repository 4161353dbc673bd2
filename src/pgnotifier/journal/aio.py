"""A consumer, for coroutines (guarantees 17 and 18)."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from ..calls import Call
from .consumer import Consumer, ConsumerStatus


class AsyncConsumer:
    """A consumer whose notifier is an `AsyncNotifier`. `async with` stops it at the end of the block."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __repr__(self) -> str:
        return repr(self._consumer)

    async def __aenter__(self) -> AsyncConsumer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def status(self) -> ConsumerStatus:
        """Return its state and counters, as `Consumer.status`."""
        return self._consumer.status()

    async def stop(self, timeout: float = 10.0) -> None:
        """Stop as `Consumer.stop`, also if the task is cancelled."""
        call = Call(lambda: self._consumer.stop(timeout))
        call.begin()
        await call.wait()


async def consume_on_a_thread(consume: Callable[[], Consumer]) -> AsyncConsumer:
    """Call `consume()` on a thread. If the task is cancelled, stop the consumer that it makes."""
    made: list[Consumer] = []

    def make() -> None:
        made.append(consume())
        if call.dropped:
            made[0].stop()

    call = Call(make)
    call.begin()
    try:
        await call.wait()
    except BaseException:  # no `await` here: the task may be cancelled at each
        call.dropped = True
        for consumer in made:
            Call(consumer.stop).begin()
        raise
    return AsyncConsumer(made[0])
