"""The worker threads and the queue of mailboxes that are ready for a turn (contract 8 and 9).

A mailbox with something in it stands in the queue once: whoever takes its claim puts it there, or gives it a turn.
User code is called by `calls` alone, with the claim held.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic, perf_counter

from ..log import CRITICAL, log
from .items import Fanout
from .mailbox import Mailbox

TURN = 0.005  # seconds that a mailbox may keep a worker while others are waiting


class Workers:
    """`run(mailbox)` gives a turn, and says whether an event loop has the claim now; `through(mailbox)` comes after
    each turn, and says whether the claim is to be given back. `fan(fanout, end)` calls those that are left in it,
    until `end` (of `perf_counter`), and gives back their claims.
    """

    def __init__(
        self,
        count: int,
        run: Callable[[Mailbox], bool],
        fan: Callable[[Fanout, float], None],
        through: Callable[[Mailbox], bool],
    ) -> None:
        self._count, self._run, self._fan, self._through = count, run, fan, through
        # The lock itself is entered, not a condition: Ctrl-C in Condition.__enter__ would leave it held.
        self._lock = lock = threading.RLock()
        self._work_to_do = threading.Condition(lock)  # workers wait for it, and nobody else
        self._quiet = threading.Condition(lock)  # a mailbox is empty, a worker or an event loop is through
        self.running: bool = False
        self._watchers = 0
        self._ready: deque[Mailbox | Fanout] = deque()
        self._idle = 0
        self._numbers: set[int] = set()  # of the workers that live
        self._threads: set[threading.Thread] = set()

    def offer(self, boxes: Iterable[Mailbox]) -> None:
        """Have those that nobody has the claim of stand in the queue."""
        added = 0
        for box in boxes:
            if box.claim.acquire(False):
                self._ready.append(box)
                added += 1
        if added and self._idle:
            with self._lock:
                self._work_to_do.notify(added)

    def share(self, job: Fanout) -> None:
        """Have `job` stand in the queue, for all workers that are free: a stuck callback holds up no other."""
        self._ready.append(job)
        if self._idle:
            with self._lock:
                self._work_to_do.notify()

    def release(self, box: Mailbox) -> None:
        """Whoever has the claim is through with a turn. On a worker, or on an event loop."""
        box.done()
        if not self._through(box):
            self._tell()
            return
        if len(box):
            self._ready.append(box)
            if self._idle:
                with self._lock:
                    self._work_to_do.notify()
            return
        box.claim.release()
        if len(box) or box.leaving:
            self.offer((box,))
        self._tell()

    def _tell(self) -> None:
        if self._watchers:
            with self._lock:
                self._quiet.notify_all()

    def start(self) -> None:
        """Have all of them run; those that are still in a callback from before go on."""
        with self._lock:
            self.running = True
            self._quiet.notify_all()
            missing = [n for n in range(1, self._count + 1) if n not in self._numbers]
            self._numbers.update(missing)
        try:
            while missing:
                name = f"pgnotifier-worker-{missing[0]}"
                thread = threading.Thread(target=self._work, args=(missing[0],), name=name, daemon=True)
                self._threads.add(thread)
                try:
                    thread.start()
                except BaseException:
                    self._threads.discard(thread)
                    raise
                del missing[0]
        except BaseException:
            with self._lock:
                self._numbers.difference_update(missing)
            raise

    def stop(self) -> None:
        """Have them end when the queue is empty."""
        with self._lock:
            self.running = False
            self._work_to_do.notify_all()

    def wait(self, condition: Callable[[], object], deadline: float) -> None:
        """Wait until `condition()` holds, as often as something has changed, until `deadline` (monotonic seconds)."""
        with self._lock:
            self._watchers += 1
            try:
                self._quiet.wait_for(condition, max(0.0, deadline - monotonic()))
            finally:
                self._watchers -= 1

    @property
    def ended(self) -> bool:
        return not self._threads

    def void(self) -> None:
        """In a forked child, whose only thread may be one of these: have it do nothing any more."""
        self.running = False
        self._ready.clear()

    def is_one(self, thread: threading.Thread) -> bool:
        return thread in self._threads

    def _next(self, number: int) -> Mailbox | Fanout | None:
        ready = self._ready
        while True:
            try:
                return ready.popleft()
            except IndexError:
                with self._lock:
                    self._idle += 1
                    while self.running and not ready:
                        self._work_to_do.wait()
                    self._idle -= 1
                    if not ready:  # and not running any more; `start` may count on the number from now on
                        self._numbers.discard(number)
                        return None

    def _take_part(self, job: Fanout, end: float) -> None:
        shared = self._count > 1 and len(job.left) > 1
        if shared:
            self.share(job)
        try:
            self._fan(job, end)
        except BaseException as error:  # none of user code's, which is guarded
            log(CRITICAL, "a worker met what it did not expect", error=error)
        if job.left and not shared:
            self._ready.append(job)
        self._tell()

    def _work(self, number: int) -> None:
        try:
            while (job := self._next(number)) is not None:
                end = perf_counter() + TURN
                if isinstance(job, Fanout):
                    self._take_part(job, end)
                    continue
                box = job
                while True:
                    try:
                        if self._run(box):
                            break  # an event loop has the claim
                    except BaseException as error:  # none of user code's, which is guarded
                        log(CRITICAL, "a worker met what it did not expect", error=error)
                    if not box.waiting or perf_counter() > end:
                        self.release(box)
                        break
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                self._quiet.notify_all()
