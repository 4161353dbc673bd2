"""Connecting and waiting for the server, so that every wait has a deadline and can be given up from any thread.

psycopg's own `connect` cannot be interrupted, and its waits outlast a silent network for ever; this room does both
on psycopg's public `pq` layer. Names are resolved in Python, afresh for each connection: libpq would hold the GIL.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import shuffle
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import Diagnostic, error_from_result

from .types import DbConf

CONNECT_TIMEOUT = 10.0  # seconds for each address, where neither the user nor libpq's environment says otherwise
NO_TIMEOUT = 130.0  # seconds: libpq's 0 means the socket's own time-out, as in psycopg

# Of psycopg.connect's own arguments none matters to a connection that only listens or notifies.
_NOT_LIBPQ = ("autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory")

# epoll would be shared with a forked child, whose clean-up makes the parent deaf; poll shares nothing.
PortableSelector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Abandoned(psycopg.OperationalError):
    """A wait was given up because the notifier is being stopped."""


class Breaker:
    """Ends every wait that goes through it, at once and for good, from any thread."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._there.setblocking(False)
        self.broken: bool = False

    def snap(self) -> None:
        self.broken = True
        with contextlib.suppress(OSError):  # closed already
            self._there.send(b"!")  # never read, so it ends the waits to come as well

    def wait(self, deadline: float | None, fd: int | None = None, events: int = selectors.EVENT_READ) -> bool:
        """Wait for `fd`, until `deadline` (monotonic seconds); whether it is ready. Raises `Abandoned`."""
        ready: Any = None
        with contextlib.suppress(ValueError), PortableSelector() as selector:  # closed: it is broken then
            selector.register(self._here, selectors.EVENT_READ)
            if fd is not None:
                selector.register(fd, events)
            if not self.broken:
                ready = selector.select(None if deadline is None else max(0.0, deadline - monotonic()))
        if self.broken:
            raise Abandoned("given up: the notifier was stopped")
        return bool(ready)

    def close(self) -> None:
        self.broken = True
        self._here.close()
        self._there.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # not made, or the interpreter ends
            self.close()


class Connection(psycopg.Connection[Any]):
    """A connection that keeps what the server said before it ended the session."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        super().__init__(pgconn)
        self.autocommit = True
        self._said: deque[psycopg.OperationalError] = deque(maxlen=1)
        self.add_notice_handler(partial(_keep, self._said))  # no method of its own, which would be a cycle

    def __del__(self, *_: Any) -> None:
        """Warn of nothing: what Ctrl-C has orphaned libpq's handle closes, but for a parent's in a forked child."""

    @property
    def reason(self) -> psycopg.OperationalError | None:
        """Why the server ends the session, or has ended it; None where it has not said so."""
        return self._said[0] if self._said else None


def _keep(said: deque[psycopg.OperationalError], notice: Diagnostic) -> None:
    # A session that is idle is told by a notice: FATAL, or, where the whole server goes down at once, WARNING.
    state = notice.sqlstate or ""
    if notice.severity_nonlocalized in ("FATAL", "PANIC") or state.startswith("57P"):
        said.append(_loss(notice.message_primary, state))


def _loss(text: str | None, state: str | None = None) -> psycopg.OperationalError:
    error = psycopg.OperationalError(" ".join((text or "closed by the server").split()))
    error.sqlstate = state or None
    return error


class Server(ABC):
    """What is connected to in place of PostgreSQL where a callable `dbconf` returns one (`pgnotifier.testing`)."""

    @abstractmethod
    def connect(self, breaker: Breaker, deadline: float | None) -> psycopg.Connection[Any]:
        """As the function `connect` does, to this server."""


def connect(source: DbConf, breaker: Breaker, deadline: float | None = None) -> psycopg.Connection[Any]:
    """Connect as the user says, in autocommit, with the library's own settings added.

    Tries each address of each host in turn, each for `connect_timeout` seconds at most. Raises
    `psycopg.OperationalError`, and `psycopg.ProgrammingError` for what libpq cannot read; leaves nothing open then.
    """
    if breaker.broken:
        raise Abandoned("given up: the notifier was stopped")
    conf = source() if callable(source) else source
    if isinstance(conf, Server):
        return conf.connect(breaker, deadline)
    failures: list[tuple[str, psycopg.Error]] = []
    for params in _attempts(_parameters(conf)):
        where = ", ".join(f"{key} {params[key]!r}" for key in ("host", "hostaddr", "port") if params.get(key))
        try:
            if isinstance(unresolved := params.get("unresolved"), OSError):
                raise psycopg.OperationalError(f"failed to resolve host {params['host']!r}: {unresolved}")
            pgconn = _open(make_conninfo("", **params).encode(), breaker, deadline)
        except Abandoned:
            raise
        except psycopg.Error as error:
            failures.append((where, error))
        else:
            return Connection(pgconn)
    last = failures[-1][1]
    if len(failures) > 1:
        lines = "".join(f"\n- {where}: {error}" for where, error in failures)
        raise type(last)(f"none of {len(failures)} attempts to connect succeeded:{lines}") from None
    raise last.with_traceback(None)


def _parameters(conf: object) -> dict[str, Any]:
    """libpq's parameters; the user's mapping stays as it is."""
    if isinstance(conf, str):
        text, extra = conf, {}
    elif isinstance(conf, Mapping):
        extra = {key: value for key, value in conf.items() if key not in _NOT_LIBPQ}
        text = extra.pop("conninfo", "")
    else:
        raise TypeError(f"dbconf must be a str, a mapping or a callable that returns one, not {type(conf).__name__}")
    try:
        params = dict(conninfo_to_dict(text, **extra))
        make_conninfo("", **params)
    except psycopg.ProgrammingError as error:
        shown = str(error).strip()
        if text:  # libpq quotes the part that it could not read, and that may be a piece of a password
            shown = re.sub(r'".*"', '"..."', shown.replace('"="', "=", 1), flags=re.DOTALL)
            shown += "; wanted is a URI (postgresql://user@host/database) or pairs (host=... dbname=...)"
        raise psycopg.ProgrammingError(f"dbconf: {shown}") from None
    params["client_encoding"] = "UTF8"
    params.setdefault("fallback_application_name", "pgnotifier")
    return params


def _attempts(params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The connections to try in turn: one for each address of each host."""
    if "service" in params:  # only libpq can read it
        yield params
        return
    defaults = {o.keyword.decode(): o.val.decode() for o in pq.Conninfo.get_defaults() if o.val is not None}

    def listed(key: str) -> list[str]:
        return str(params.get(key) or defaults.get(key) or "").split(",")

    hosts, addresses, ports = listed("host"), listed("hostaddr"), listed("port")
    size = max(len(hosts), len(addresses))
    if any(len(values) not in (1, size) for values in (hosts, addresses, ports)) or (
        size > 1 and "" not in (hosts[0], addresses[0]) and len(hosts) != len(addresses)
    ):
        yield params  # libpq says what does not match
        return
    hosts, addresses, ports = (v * size if len(v) == 1 else v for v in (hosts, addresses, ports))
    attempts = [
        {**params, "host": host, "port": port, **resolved}
        for host, address, port in zip(hosts, addresses, ports, strict=True)
        for resolved in _resolve(host, address, port)
    ]
    if listed("load_balance_hosts") == ["random"]:
        shuffle(attempts)
    if listed("target_session_attrs") == ["prefer-standby"]:  # libpq would look at one host alone
        yield from ({**attempt, "target_session_attrs": "standby"} for attempt in attempts)
        attempts = [{**attempt, "target_session_attrs": "any"} for attempt in attempts]
    yield from attempts


def _resolve(host: str, address: str, port: str) -> list[dict[str, Any]]:
    if address:
        return [{"hostaddr": address}]
    if not host or host.startswith(("/", "@")):
        return [{}]
    try:
        found = socket.getaddrinfo(host, port or None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return [{"unresolved": OSError(error)}]
    return [{"hostaddr": a} for a in dict.fromkeys(str(entry[4][0]) for entry in found)]


def _open(conninfo: bytes, breaker: Breaker, latest: float | None) -> pq.abc.PGconn:
    pgconn = pq.PGconn.connect_start(conninfo)
    try:
        deadline = monotonic() + _patience(pgconn)
        if latest is not None:
            deadline = min(deadline, latest)
        while pgconn.status != pq.ConnStatus.BAD:
            state = pgconn.connect_poll()
            if state == pq.PollingStatus.OK:
                pgconn.nonblocking = 1
                return pgconn
            if state == pq.PollingStatus.FAILED:
                break
            events = selectors.EVENT_READ if state == pq.PollingStatus.READING else selectors.EVENT_WRITE
            if not breaker.wait(deadline, pgconn.socket, events):
                raise psycopg.errors.ConnectionTimeout("connection timeout expired")
        text = pgconn.error_message.decode(errors="replace").strip()
        raise psycopg.OperationalError(f"connection failed: {text}")
    except BaseException:
        pgconn.finish()
        raise


def _patience(pgconn: pq.abc.PGconn) -> float:
    """Seconds, as libpq found them in the parameters, its environment or a service file."""
    found = {o.keyword: o.val for o in pgconn.info}
    value = found.get(b"connect_timeout")
    if not value:
        return CONNECT_TIMEOUT * ((found.get(b"host") or b"").count(b",") + 1)
    try:
        seconds = int(value)
    except ValueError:
        raise psycopg.ProgrammingError(f"connect_timeout must be whole seconds, not {value.decode()!r}") from None
    return NO_TIMEOUT if seconds <= 0 else float(max(2, seconds))  # libpq's own least


def answer(
    conn: psycopg.Connection[Any],
    breaker: Breaker,
    deadline: float,
    limit: float,
    after_read: Callable[[], object] = lambda: None,
) -> list[Any]:
    """Wait for the whole answer to a query that was sent, until `deadline` (monotonic), and return its results.

    A server that sends notifications all the while may take longer: it answers after what waits in its queue, and a
    new connection would have to read that too. `after_read()` is called whenever something has come.
    Raises what the server refused; `psycopg.OperationalError` where the connection is lost or silent for `limit`
    seconds, which the text names; `Abandoned`. After these the connection is of no more use.
    """
    pgconn = conn.pgconn
    results: list[Any] = []
    while True:
        try:
            unsent = pgconn.flush()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    return checked(conn, results)
                results.append(result)
                if _is_fatal(result):
                    return checked(conn, results)
        except psycopg.OperationalError as error:
            raise lost(conn, error, results) from None
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
        if not breaker.wait(deadline, pgconn.socket, events):
            raise psycopg.OperationalError(f"no answer from the server within {limit:g} seconds")
        deadline = monotonic() + limit
        try:
            # A rest may wait in the TLS layer while the socket is silent.
            for _ in range(3 if pgconn.ssl_in_use else 1):
                pgconn.consume_input()
        except psycopg.OperationalError as error:
            raise lost(conn, error, results) from None
        after_read()


def checked(conn: psycopg.Connection[Any], results: list[Any]) -> list[Any]:
    """`results`, or the error that they hold."""
    refused = [r for r in results if r.status == pq.ExecStatus.FATAL_ERROR]
    if conn.pgconn.status == pq.ConnStatus.BAD or any(map(_is_fatal, refused)):
        raise lost(conn, _loss(None), results)
    if refused:
        raise error_from_result(refused[0], encoding="utf-8")
    return results


def lost(
    conn: psycopg.Connection[Any], error: psycopg.OperationalError, results: Sequence[Any] = ()
) -> psycopg.OperationalError:
    """The reason that the server gave for the end of the session, else `error`.

    Its `sqlstate` is the reason's, but where a part of the answer came before, which `results` and libpq hold: a
    transaction may have been committed then.
    """
    results = list(results)
    if conn.pgconn.status == pq.ConnStatus.BAD:  # else this would block
        with contextlib.suppress(psycopg.Error):
            while (result := conn.pgconn.get_result()) is not None:
                results.append(result)
    fatal = next((r for r in results if _is_fatal(r)), None)
    if fatal is not None:
        state = (fatal.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        text = (fatal.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
        reason = _loss(text, state)
    else:
        reason = getattr(conn, "reason", None) or error
    if any(r.status != pq.ExecStatus.FATAL_ERROR for r in results):
        return _loss(str(reason))
    return reason


def ended(conn: psycopg.Connection[Any]) -> bool:
    """Whether the server has ended an idle connection, or says that it does; does not wait."""
    try:
        conn.pgconn.consume_input()
        conn.pgconn.is_busy()  # has libpq look at what has come: a notice may be the reason
    except psycopg.Error:
        return True
    return getattr(conn, "reason", None) is not None


def _is_fatal(result: Any) -> bool:
    return result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC")
