"""Listening processes for the fleet: each a fork with a notifier of its own, as each host of a service has."""

from __future__ import annotations

import multiprocessing as mp
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import Any

import pgnotifier

LIMIT = 60.0  # seconds for a process to listen, or to hear what was sent


class Host:
    """One process that listens to `channel` with so many subscribers, all on one session."""

    def __init__(self, dsn: str, channel: str, subscribers: int) -> None:
        context = mp.get_context("fork")  # a fork shares the memory of the interpreter and of the modules
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, dsn, channel, subscribers), daemon=True)
        self.process.start()

    def receive(self) -> Any:
        if not self.pipe.poll(LIMIT):
            raise TimeoutError(f"process {self.process.pid} did not answer in {LIMIT:g} s")
        return self.pipe.recv()

    def close(self) -> None:
        self.process.terminate()  # later forks hold this pipe too, so closing it would tell the process nothing
        self.process.join(LIMIT)
        self.pipe.close()


def serve(pipe: Connection, dsn: str, channel: str, subscribers: int) -> None:
    """Listen, and answer each message with the latencies (ms) and the CPU (s) since the last one."""
    taken: list[float] = []

    def heard(id: object, channel: str, payload: float, pid: int) -> None:
        taken.append((perf_counter() - payload) * 1e3)

    with pgnotifier.Notifier(dsn, autostart=False) as notifier:
        for k in range(subscribers):
            notifier.subscribe(k, channel, heard, autorun=False)
        notifier.start()
        began = process_time()
        pipe.send("listening")
        while True:
            pipe.recv()
            cpu, began = process_time() - began, process_time()
            count = len(taken)  # the worker may append meanwhile
            pipe.send((taken[:count], cpu))
            del taken[:count]


class Fleet:
    """`count` hosts that listen; with `apart` each but the first to a channel to which nobody sends."""

    def __init__(self, dsn: str, count: int, subscribers: int = 1, apart: bool = False) -> None:
        self.hosts = [Host(dsn, f"fleet-{k}" if apart and k else "fleet", subscribers) for k in range(count)]
        self.hearers = self.hosts[:1] if apart else self.hosts
        self.calls = len(self.hearers) * subscribers  # of one notification
        for host in self.hosts:
            host.receive()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *exc: object) -> None:
        for host in self.hosts:
            host.close()

    def report(self) -> tuple[list[float], float]:
        """The latencies (ms) since the last report, and the CPU (s) of all processes in that time."""
        for host in self.hosts:
            host.pipe.send(None)
        found = [host.receive() for host in self.hosts]
        return [ms for taken, _ in found for ms in taken], sum(cpu for _, cpu in found)
