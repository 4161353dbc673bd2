"""Waiting for a flag: which threads look again by themselves (guarantees 11 and 15)."""

from __future__ import annotations

import threading

from pgnotifier.flag import Bell

SECONDS = 0.3  # many of the short slices


def looks() -> int:
    """How often a wait of `SECONDS` looks at its condition."""
    count = 0

    def condition() -> bool:
        nonlocal count
        count += 1
        return False

    assert not Bell().wait_for(condition, SECONDS)
    return count


def test_only_the_main_thread_looks_again_by_itself() -> None:
    """A signal handler runs there, perhaps just before the wait; another thread that waits is idle."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(looks()))
    thread.start()
    thread.join(10)
    assert found == [2]  # before and after the wait
    assert looks() > 3
