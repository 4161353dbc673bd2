"""The states of a mailbox, and the table of steps, which `docs/internals.md` shows."""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """The state of a mailbox: who acts on it next."""

    IDLE = "nothing waits"
    READY = "it stands in the queue for workers"
    RUNNING = "a worker makes its calls"
    AWAITING = "an event loop makes its calls"
    PAUSED = "its on_listen failed, and is called again later"
    PULLED = "a stream's readers take from it"


IDLE, READY, RUNNING, AWAITING, PAUSED, PULLED = State

NEXT: dict[State, frozenset[State]] = {
    IDLE: frozenset({READY, PULLED}),
    READY: frozenset({RUNNING, IDLE}),  # IDLE: what waited has been thrown away
    RUNNING: frozenset({IDLE, READY, AWAITING, PAUSED}),
    AWAITING: frozenset({IDLE, READY, PAUSED}),
    PAUSED: frozenset({READY}),
    PULLED: frozenset(),
}
