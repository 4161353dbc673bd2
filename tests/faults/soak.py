"""Random faults and random calls for minutes, under numbered traffic: python -m tests.faults.soak --minutes 10

Run it from the repository's root. Prints what happened; the exit status is 1 where anything was lost without a Gap,
came twice or out of order. `--seed` repeats the choices (not the moments) of an earlier run.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from pgnotifier import Notifier

from .proxy import Proxy
from .servers import Server
from .traffic import Stream, Traffic, settle

HEARTBEAT = 1.0


class Soak:
    """One server, a proxy before it, three notifiers: through the proxy, directly, and one that stops and starts."""

    def __init__(self, server: Server, proxy: Proxy, rng: random.Random) -> None:
        self.server, self.proxy, self.rng = server, proxy, rng
        self.faults: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.trouble: list[str] = []
        self._calling = threading.Lock()
        settings: dict[str, Any] = {"heartbeat": HEARTBEAT, "retry_delay": (0.01, 0.5), "workers": 2}
        self.far, self.near, self.restless = (Notifier(dsn, **settings) for dsn in (proxy.dsn, server.dsn, proxy.dsn))
        self.notifiers = [self.far, self.near, self.restless]
        self.streams: dict[tuple[Notifier, str], Stream] = {}
        for n in self.notifiers:
            for id in ("steady", "muted", "channel"):
                stream = self.streams[n, id] = Stream(f"soak_{id}")
                n.subscribe(id, stream.channel, stream.heard, on_listen=stream.told)

    def channels(self) -> list[str]:
        return sorted({stream.channel for stream in self.streams.values()})

    # -- faults: each is over when it returns -----------------------------------------------------------------

    def terminate(self) -> None:
        for row in self.server.execute("select pid from pg_stat_activity where application_name = 'pgnotifier'"):
            if self.rng.random() < 0.7:
                self.server.terminate(row[0])

    def restart(self) -> None:
        self.server.stop(self.rng.choice(["fast", "immediate"]))
        time.sleep(self.rng.uniform(0, 0.5))
        self.server.start()

    def kill(self) -> None:
        self.server.kill()
        self.server.start()

    def freeze(self) -> None:
        """Half of the times for less than the heartbeat's deadline."""
        pid = self.rng.choice(self.notifiers).status()["pid"]
        if pid is None or not self.server.execute("select from pg_stat_activity where pid = %s", [pid]):
            return
        self.server.freeze(pid)
        time.sleep(HEARTBEAT * self.rng.choice([0.5, 2.2]))
        self.server.thaw(pid)

    def reset(self) -> None:
        self.proxy.reset()

    def refuse(self) -> None:
        self._with(self.proxy.refuse)

    def refuse_by_reset(self) -> None:
        self._with(lambda: self.proxy.accept("reset"))

    def never_answer(self) -> None:
        self._with(lambda: self.proxy.accept("silent"))

    def deaf(self) -> None:
        """In one direction or both, healed before the deadline or after."""
        to_server, to_client = self.rng.choice([(True, False), (False, True), (True, True)])
        self.proxy.deafen(to_server=to_server, to_client=to_client)
        time.sleep(HEARTBEAT * self.rng.choice([0.5, 2.2]))
        self.proxy.heal()
        if self.rng.random() < 0.5:
            self.proxy.reset()

    def delay(self) -> None:
        self.proxy.slow(delay=self.rng.uniform(0.01, 0.3))
        time.sleep(self.rng.uniform(0, 2))
        if self.rng.random() < 0.5:
            self.proxy.reset()
        self.proxy.heal()

    def trickle(self) -> None:
        self.proxy.slow(trickle=0.0005)
        time.sleep(self.rng.uniform(0, 2))
        self.proxy.heal()

    def _with(self, fault: Callable[[], None]) -> None:
        fault()
        self.proxy.reset()
        time.sleep(self.rng.uniform(0, 1))
        self.proxy.heal()
        self.proxy.reset()

    # -- calls: made by threads of their own, all the while ---------------------------------------------------

    def call(self, rng: random.Random) -> None:
        n = rng.choice(self.notifiers)
        name = rng.choice(
            ["subscribe", "unsubscribe", "mute_channels", "mute_subscriber", "restart", "status", "stop"]
        )
        extra = f"soak_extra_{rng.randrange(20)}"
        if name == "subscribe":
            n.subscribe("extra", extra, lambda *a: None)
        elif name == "unsubscribe":
            n.unsubscribe("extra", extra)
        elif name == "mute_channels":
            n.mute_channels("soak_channel")
            time.sleep(rng.uniform(0, 0.05))
            n.unmute_channels("soak_channel")
        elif name == "mute_subscriber":
            n.mute_subscriber("muted")
            time.sleep(rng.uniform(0, 0.05))
            n.unmute_subscriber("muted")
        elif name == "restart" and n is not self.restless:
            n.restart()
        elif name == "status":
            n.status()
        elif name == "stop" and n is self.restless:
            with self._calling:
                since = time.monotonic()
                n.stop()
                took = time.monotonic() - since
                if took > 1.5:
                    self.trouble.append(f"stop() took {took:.1f} s")
                self.start(n)
        with self._calling:
            self.calls[name] += 1

    def start(self, n: Notifier) -> None:
        """Start it where it has been stopped; while the server is away that raises, and is tried again."""
        deadline = time.monotonic() + 60
        while not n.is_running():
            try:
                n.start()
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def run(self, seconds: float) -> None:
        ending = threading.Event()

        def repeat(rng: random.Random) -> None:
            try:
                while not ending.wait(rng.uniform(0, 0.05)):
                    self.call(rng)
            except BaseException as error:
                self.trouble.append(f"a call raised {error!r}")
                logging.exception("a call failed")

        threads = [threading.Thread(target=repeat, args=(random.Random(self.rng.random()),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        kinds = [self.terminate, self.restart, self.kill, self.freeze, self.reset, self.refuse, self.refuse_by_reset]
        kinds += [self.never_answer, self.deaf, self.delay, self.trickle]
        ends = time.monotonic() + seconds
        try:
            while time.monotonic() < ends:
                time.sleep(self.rng.uniform(0, 0.5))
                fault = self.rng.choice(kinds)
                fault()
                self.faults[fault.__name__] += 1
        finally:
            ending.set()
            for thread in threads:
                thread.join(60)
                if thread.is_alive():
                    self.trouble.append("a call hangs")
        self.start(self.restless)

    def report(self, traffic: Traffic) -> int:
        """Print the figures; the exit status."""
        verdicts = settle(traffic, *self.streams.values(), timeout=60)
        for (n, id), verdict in zip(self.streams, verdicts, strict=True):
            where = ["proxied", "direct", "restless"][self.notifiers.index(n)]
            self.trouble += [f"{where} {id}: {problem}" for problem in verdict.problems]
            print(
                f"{where:9} {id:8} delivered {verdict.delivered:8,}  under a Gap {verdict.covered:7,}"
                f"  lost without one {verdict.lost}  gaps {len(self.streams[n, id].gaps()):,}"
            )
        sent = traffic.sent()
        uncertain = sum(one.after is None for one in sent)
        print(f"sent {len(sent):,}, of which the commit of {uncertain} was never confirmed")
        for title, counts in [("faults survived", self.faults), ("calls", self.calls)]:
            print(f"{title}: {counts.total():,} ({', '.join(f'{k} {v:,}' for k, v in sorted(counts.items()))})")
        print(f"reconnections: {sum(n.status()['reconnects'] for n in self.notifiers):,}")
        total = {name: sum(getattr(v, name) for v in verdicts) for name in ("delivered", "covered", "lost")}
        print(f"in all: delivered {total['delivered']:,}, under a Gap {total['covered']:,}, lost {total['lost']}")
        for trouble in self.trouble[:20]:
            print("TROUBLE", trouble)
        return 1 if self.trouble else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args(argv)
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    logging.getLogger("pgnotifier").setLevel(logging.CRITICAL)
    with Server() as server, Proxy(server.address) as proxy:
        soak = Soak(server, proxy, random.Random(arguments.seed))
        try:
            with Traffic(server.dsn, soak.channels()) as traffic:
                soak.run(arguments.minutes * 60)
                return soak.report(traffic)
        finally:
            for n in soak.notifiers:
                n.stop()


if __name__ == "__main__":
    sys.exit(main())
