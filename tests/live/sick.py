"""A server on which LISTEN fails with 58P01, a defect of PostgreSQL before 18.2, 17.8, 16.12, 15.16 and 14.21."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

from pooler import Pooler

FIELDS = (b"SERROR", b"VERROR", b"C58P01", b"Mcould not access status of transaction 726")
CURE = b"pg_notification_queue_usage()"


class Sick(Pooler):
    """Stands before a server, and answers LISTEN so until the cure was asked for; `incurable` does not help."""

    def __init__(self, target: str) -> None:
        self.sick, self.incurable = True, False
        self.refused = self.cured = 0
        super().__init__(target, session=True)

    def _connect(self, startup: bytes, taken: bool = False) -> tuple[socket.socket, bytes]:
        """To itself, in between: all that the client sends goes through `_ask`."""
        server, greeting = super()._connect(startup, taken)
        near, far = socket.socketpair()
        self._all += [near, far]
        self._thread(self._to_server, far, server)
        self._thread(self._to_client, server, far)
        return near, greeting

    @staticmethod
    def _thread(f: Any, *args: Any) -> None:
        threading.Thread(target=f, args=args, daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while True:
                kind, message = self._message(client)
                if kind == b"Q" and CURE in message:
                    self.cured += 1
                    self.sick = self.incurable
                if kind == b"Q" and b'LISTEN "' in message and self.sick:
                    self.refused += 1
                    body = b"".join(field + b"\0" for field in FIELDS) + b"\0"
                    client.sendall(b"E" + struct.pack("!i", len(body) + 4) + body + b"Z\0\0\0\x05I")
                else:
                    server.sendall(message)
        except (OSError, EOFError):
            server.close()

    def _to_client(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                client.sendall(data)
        except OSError:
            pass
        client.close()
