"""pgbouncer in front of a server, where Debian's package or another one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from tempfile import mkdtemp

from conftest import until

from .servers import USER, Server, free_port, unprivileged

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


class Pooler:
    """A running pgbouncer with one pool; `mode` is one of "session", "transaction", "statement"."""

    def __init__(self, server: Server, mode: str) -> None:
        assert PGBOUNCER is not None
        self.port = free_port()
        self._folder = Path(mkdtemp(prefix="pgn-"))
        host, port = server.address
        conf = self._folder / "pgbouncer.ini"
        conf.write_text(
            f"[databases]\npostgres = host={host} port={port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\ndefault_pool_size = 5\n"
        )
        rights = unprivileged()
        if os.geteuid() == 0:
            os.chown(self._folder, pwd.getpwnam(USER).pw_uid, -1)
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen([PGBOUNCER, conf], stdout=self._log, stderr=self._log, **rights)
        until(lambda: b"process up" in (self._folder / "log").read_bytes())

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def __enter__(self) -> Pooler:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._log.close()
        shutil.rmtree(self._folder)
