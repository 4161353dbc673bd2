"""A TLS-terminating proxy, for the embedded server is built without TLS: `sslnegotiation=direct` of libpq 17 on."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from pathlib import Path

import trustme

CHUNK = 1 << 20


class TlsProxy:
    """Takes TLS with ALPN "postgresql" and forwards plain bytes to `target`; a thread per connection."""

    def __init__(self, target: tuple[str, int], folder: Path) -> None:
        self._target = target
        authority = trustme.CA()
        self.root = folder / "root.pem"
        authority.cert_pem.write_to_path(str(self.root))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_alpn_protocols(["postgresql"])
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="tls-proxy")]
        self._threads[0].start()

    @property
    def dsn(self) -> str:
        secure = f"sslmode=verify-full sslnegotiation=direct sslrootcert={self.root}"
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres {secure}"

    def __enter__(self) -> TlsProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        for sock in [self._listening, *self._socks]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="tls-proxy")
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(self._target) as server,
            self._context.wrap_socket(client, server_side=True) as secure,
        ):
            self._socks += [secure, server]
            secure.setblocking(False)
            self._pump(secure, server)

    def _pump(self, secure: ssl.SSLSocket, server: socket.socket) -> None:
        poll = select.poll()
        unsent = b""
        while True:
            try:
                while data := secure.recv(CHUNK):
                    server.sendall(data)
                return
            except ssl.SSLWantReadError:
                pass
            if unsent:
                with contextlib.suppress(ssl.SSLWantWriteError):
                    unsent = unsent[secure.send(unsent) :]
            poll.register(secure, select.POLLIN | (select.POLLOUT if unsent else 0))
            poll.register(server, 0 if unsent else select.POLLIN)
            for number, _ in poll.poll():
                if number == server.fileno() and not unsent:
                    unsent = server.recv(CHUNK)
                    if not unsent:
                        return
