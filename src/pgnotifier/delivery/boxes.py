"""The mailboxes of all ids, and the counts of those that are no more."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from .mailbox import Mailbox


class Boxes:
    """Made when first needed, each for at most `limit` notifications. From any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._by_id: dict[Hashable, Mailbox] = {}
        self._lock = threading.RLock()  # reentrant: a signal handler may call anything anywhere
        self._left = [0, 0, 0]  # delivered, failed, dropped of those that were removed

    def get(self, id: Hashable) -> Mailbox | None:
        return self._by_id.get(id)

    def all(self) -> tuple[Mailbox, ...]:
        with self._lock:
            return tuple(self._by_id.values())

    def all_unlocked(self) -> tuple[Mailbox, ...]:
        """For a forked child, in which the lock may be held for ever."""
        return tuple(self._by_id.values())

    def make(self, id: Hashable) -> Mailbox:
        """The id's mailbox, made where there is none."""
        box = self._by_id.get(id)
        if box is None:
            with self._lock:
                box = self._by_id.setdefault(id, Mailbox(id, self.limit))
        return box

    def remove(self, box: Mailbox) -> None:
        """By whoever has its claim, which is never given back."""
        with self._lock:
            if self._by_id.get(box.id) is box:
                del self._by_id[box.id]
                for n, count in enumerate((box.delivered, box.failed, box.dropped)):
                    self._left[n] += count

    def counts(self) -> dict[str, int]:
        with self._lock:
            boxes = self.all()
            delivered, failed, dropped = self._left
        return {
            "delivered": delivered + sum(box.delivered for box in boxes),
            "failed": failed + sum(box.failed for box in boxes),
            "dropped": dropped + sum(box.dropped for box in boxes),
            "pending": sum(map(len, boxes)),
        }
