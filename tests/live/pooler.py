"""A connection pooler as small as can be: pgbouncer's way with sessions, over a Unix socket or TCP server.

In transaction mode a client has a server session from its first message to the end of its transaction, and the
session used last is given out first. `session=True` keeps it for the client's life. No authentication.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Pooler:
    """Listens on `dsn`, hands on to `target`; close it at the end.

    `console`: the name of a database that answers any query with that text, as a pooler's own does. A text that
    begins with FATAL is an error at login, in every database but the target's.
    """

    def __init__(
        self, target: str, *, size: int = 10, session: bool = False, console: tuple[str, str] = ("", "")
    ) -> None:
        self._console = console
        conf = conninfo_to_dict(target)
        self._host, self._port = str(conf["host"]), conf.get("port") or 5432
        self._session = session
        self._idle: list[socket.socket] = []
        self._all: list[socket.socket] = []
        self._free = threading.Semaphore(size)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.dsn = make_conninfo(target, host="127.0.0.1", port=self._door.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for sock in [self._door, *self._all]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._door.accept()
                self._all.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        with contextlib.suppress(OSError, EOFError), client:
            startup = self._startup(client)
            if self._answers_itself(client, startup):
                return
            server, greeting = self._connect(startup)
            client.sendall(greeting)
            if not self._session:
                server = self._release(server)
            while True:
                readable = select.select([client, server] if server else [client], [], [])[0]
                if client in readable:
                    data = client.recv(65536)
                    if not data or data[:1] == b"X":
                        break
                    if server is None:
                        self._free.acquire()
                        server = self._idle.pop() if self._idle else self._connect(startup, taken=True)[0]
                    server.sendall(data)
                if server in readable:
                    assert server is not None
                    kind, message = self._message(server)
                    client.sendall(message)
                    if kind == b"Z" and message[-1:] == b"I" and not self._session:
                        server = self._release(server)
        if server is not None:  # the client has left in mid-transaction: nobody else may have this session
            server.close()
            self._free.release()

    def _answers_itself(self, client: socket.socket, startup: bytes) -> bool:
        fields = startup[8:].split(b"\0")
        database = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"database", b"").decode()
        name, text = self._console
        if not name or database not in ("pgbouncer", "admin", "console"):
            return False
        if text.startswith("FATAL"):
            client.sendall(self._packet(b"E", b"SFATAL\0C08P01\0M" + text[6:].strip().encode() + b"\0\0"))
        elif database != name:
            client.sendall(self._packet(b"E", f"SFATAL\0C3D000\0Mdatabase {database} does not exist\0\0".encode()))
        else:
            client.sendall(self._packet(b"R", b"\0\0\0\0") + self._packet(b"Z", b"I"))
            self._message(client)
            column = b"version\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0)
            row = struct.pack("!hi", 1, len(text)) + text.encode()
            client.sendall(
                self._packet(b"T", struct.pack("!h", 1) + column)
                + self._packet(b"D", row)
                + self._packet(b"C", b"SHOW\0")
                + self._packet(b"Z", b"I")
            )
            with contextlib.suppress(EOFError):
                self._message(client)
        return True

    @staticmethod
    def _packet(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("!i", len(body) + 4) + body

    def _release(self, server: socket.socket) -> None:
        self._idle.append(server)
        self._free.release()

    def _startup(self, client: socket.socket) -> bytes:
        while True:
            head = self._exactly(client, 8)
            size, code = struct.unpack("!ii", head)
            if code not in (80877103, 80877104):  # neither TLS nor GSS
                return head + self._exactly(client, size - 8)
            client.sendall(b"N")

    def _connect(self, startup: bytes, taken: bool = False) -> tuple[socket.socket, bytes]:
        if not taken:
            self._free.acquire()
        unix = self._host.startswith("/")
        server = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        address: Any = f"{self._host}/.s.PGSQL.{self._port}" if unix else (self._host, int(self._port))
        server.connect(address)
        self._all.append(server)
        server.sendall(startup)
        greeting, kind = b"", b""
        while kind != b"Z":
            kind, message = self._message(server)
            if kind == b"K":  # a pooler has pids and keys of its own
                message = b"K" + struct.pack("!iii", 12, 1, 1)
            greeting += message
        return server, greeting

    def _message(self, sock: socket.socket) -> tuple[bytes, bytes]:
        head = self._exactly(sock, 5)
        return head[:1], head + self._exactly(sock, struct.unpack("!i", head[1:])[0] - 4)

    @staticmethod
    def _exactly(sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data
