"""A TCP proxy whose faults are switched on and off at any moment, for connections that exist and for new ones.

One thread serves all connections. Whoever switches a fault wakes it, so the fault is there at once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .servers import free_port

CHUNK = 65536
HELD = 4 * CHUNK  # bytes that a pipe holds before it stops reading


@dataclass
class Way:
    """What is done to the bytes of one direction. Seconds; zero is off."""

    deaf: bool = False  # held for as long as this lasts; the sender notices nothing
    delay: float = 0.0  # each byte arrives so much later
    trickle: float = 0.0  # one byte at a time, so far apart
    passed: int = 0  # bytes that came through


@dataclass(eq=False)
class Pipe:
    """One direction of one connection."""

    source: socket.socket
    target: socket.socket
    way: Way
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    next_byte: float = 0.0
    ended: bool = False

    def wants(self) -> bool:
        return not (self.ended or self.way.deaf) and sum(len(data) for _, data in self.held) < HELD

    def due(self) -> float | None:
        """When to write next (monotonic), or None."""
        return max(self.held[0][0], self.next_byte) if self.held and not self.way.deaf else None

    def read(self) -> None:
        data = self.source.recv(CHUNK)
        self.ended = not data
        self.held.append((time.monotonic() + self.way.delay, data))

    def write(self) -> None:
        while (due := self.due()) is not None and due <= time.monotonic():
            at, data = self.held.popleft()
            if not data:
                self.target.shutdown(socket.SHUT_WR)
                return
            try:
                sent = self.target.send(data[:1] if self.way.trickle else data)
            except BlockingIOError:
                sent = 0
                self.next_byte = time.monotonic() + 0.001
            self.way.passed += sent
            if data[sent:]:
                self.held.appendleft((at, data[sent:]))
            if self.way.trickle:
                self.next_byte = time.monotonic() + self.way.trickle


class Proxy:
    """Forwards to `target`. `to_server` and `to_client` are the two directions; change them with `fault`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = free_port()
        self.to_server, self.to_client = Way(), Way()
        self.accepting: Literal["forward", "reset", "silent"] = "forward"
        self.accepted = 0
        self._links: list[tuple[Pipe, Pipe]] = []
        self._mute: list[socket.socket] = []  # accepted, and never answered
        self._lock = threading.Lock()  # around each round of the thread, and each switch
        self._wake, self._woken = socket.socketpair()
        self._running = True
        self._listening: socket.socket | None = None
        self.listen()
        self._thread = threading.Thread(target=self._serve, name="proxy")
        self._thread.start()

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._switch():
            self._running = False
        self._thread.join()
        self.refuse()
        self.reset()
        self._wake.close()
        self._woken.close()

    def heal(self) -> None:
        """No faults for what comes and what is held; connections that were reset stay so."""
        with self._switch():
            for way in (self.to_server, self.to_client):
                way.deaf, way.delay, way.trickle = False, 0.0, 0.0
            self.accepting = "forward"
        self.listen()

    def deafen(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Hold all bytes of these directions, those of a connection's start too."""
        with self._switch():
            self.to_server.deaf, self.to_client.deaf = to_server, to_client

    def slow(self, *, delay: float = 0.0, trickle: float = 0.0) -> None:
        """Both directions late by `delay` seconds, or a byte each `trickle` seconds."""
        with self._switch():
            for way in (self.to_server, self.to_client):
                way.delay, way.trickle = delay, trickle

    def accept(self, how: Literal["forward", "reset", "silent"]) -> None:
        """What happens to new connections."""
        with self._switch():
            self.accepting = how

    def reset(self) -> None:
        """RST to both ends of all connections."""
        with self._switch():
            for link in self._links:
                self._drop(link)
            self._links.clear()
            for sock in self._mute:
                _rst(sock)
            self._mute.clear()

    def refuse(self) -> None:
        """Close the port: new connections are refused."""
        with self._switch():
            if self._listening is not None:
                with contextlib.suppress(OSError):
                    self._listening.shutdown(socket.SHUT_RDWR)  # the thread's poll would keep it open a while
                self._listening.close()
            self._listening = None

    def listen(self) -> None:
        """Open the port again."""
        with self._switch():
            if self._listening is None:
                self._listening = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
                self._listening.setblocking(False)

    @contextlib.contextmanager
    def _switch(self) -> Iterator[None]:
        with self._lock:
            yield
            with contextlib.suppress(BlockingIOError):
                self._wake.send(b"x")

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._running:
                    return
                poll, listening = select.poll(), self._listening
                poll.register(self._woken, select.POLLIN)
                if listening is not None:
                    poll.register(listening, select.POLLIN)
                pipes = [pipe for link in self._links for pipe in link]
                reading = {pipe.source.fileno(): pipe for pipe in pipes if pipe.wants()}
                for number in reading:
                    poll.register(number, select.POLLIN)
                dues = [due for pipe in pipes if (due := pipe.due()) is not None]
            left = max(0.0, min(dues) - time.monotonic()) * 1000 if dues else None
            ready = {number for number, _ in poll.poll(left)}
            with self._lock:
                if self._woken.fileno() in ready:
                    self._woken.recv(CHUNK)
                if listening is not None and listening is self._listening and listening.fileno() in ready:
                    self._accept(listening)
                for link in list(self._links):
                    self._move(link, {number for number in ready if number in reading}, reading)

    def _move(self, link: tuple[Pipe, Pipe], ready: set[int], reading: dict[int, Pipe]) -> None:
        try:
            for pipe in link:
                number = pipe.source.fileno()
                if number in ready and reading[number] is pipe and pipe.wants():
                    pipe.read()
                pipe.write()
        except OSError:  # one side has reset it, so the other is told
            self._drop(link)
            self._links.remove(link)
            return
        if all(pipe.ended and not pipe.held for pipe in link):
            for pipe in link:
                pipe.source.close()
            self._links.remove(link)

    def _accept(self, listening: socket.socket) -> None:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        self.accepted += 1
        if self.accepting == "reset":
            return _rst(client)
        if self.accepting == "silent":
            return self._mute.append(client)
        try:
            server = socket.create_connection(self.target, timeout=5)
        except OSError:
            return _rst(client)
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._links.append((Pipe(client, server, self.to_server), Pipe(server, client, self.to_client)))

    def _drop(self, link: tuple[Pipe, Pipe]) -> None:
        for pipe in link:
            _rst(pipe.source)


def _rst(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
