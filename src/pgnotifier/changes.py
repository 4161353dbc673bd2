"""Changes of the registry for coroutines: in order, in as few round trips as possible, undone if cancelled."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from . import registry
from .calls import Call, Lane
from .flag import Flag
from .registry import Registry
from .shared import Step

if TYPE_CHECKING:
    from .notifier import Notifier

MAX_TOGETHER = 50  # changes that are made as one, under the state lock


class Change(Call):
    """A change of the registry; `taken`: it is in the registry that was computed last."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None, step: Step, autorun: bool) -> None:
        super().__init__(loop)
        self.step, self.autorun, self.taken = step, bool(autorun), False


def together(changes: list[Change], reg: Registry) -> registry.Step:
    """All of these as one step. One that raises keeps its error, and the others are made. Under the state lock."""
    touched: list[registry.Touched] = []
    for change in changes:
        change.taken, change.error = False, None
        if not change.dropped:
            try:
                reg, names = change.step(reg)
            except Exception as error:
                change.error = error
            else:
                change.taken = True
                touched += names
    return reg, tuple(touched)


class Changes:
    """Makes changes of a notifier one after the other, on a thread that ends when none is left."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._lane = Lane(self._serve)
        self.newest: Flag = Flag(True)  # set when all changes up to now have been made

    async def make(self, step: Step, autorun: bool = True, undo: Step | None = None) -> None:
        """Make `step`; returns when the server follows, as `Supervisor.change`. Raises what that raises.

        If the task is cancelled, the change is made all the same. With `undo` it is not made, or `undo` is the change
        after it: a thread sees to that, and the task does not wait.
        """
        change = Change(asyncio.get_running_loop(), step, autorun)
        self._lane.put(change)
        self.newest = change.done
        try:
            await change
        except BaseException:  # no `await` here: the task may be cancelled at each
            if undo is not None and not change.has_failed:
                change.dropped = True
                back = Change(None, lambda reg: undo(reg) if change.taken else (reg, ()), autorun)
                with suppress(RuntimeError):  # no thread can be started
                    self._lane.put(back)
                    self.newest = back.done
            raise

    def _serve(self, calls: deque[Change]) -> None:
        """Make the oldest changes, those that agree in `autorun`. On the lane's thread."""
        changes = [calls.popleft()]
        while calls and len(changes) < MAX_TOGETHER and calls[0].autorun is changes[0].autorun:
            changes.append(calls.popleft())
        self._make(changes)

    def _make(self, changes: list[Change]) -> None:
        try:
            self._notifier._supervisor.change(partial(together, changes), changes[0].autorun)
        except BaseException as error:  # the server refuses a name, or no thread can be started
            if len(changes) > 1:
                for change in changes:
                    self._make([change])
                return
            changes[0].taken, changes[0].error = False, error
        for change in changes:
            change.finish()
