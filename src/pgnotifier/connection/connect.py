"""Connecting with deadlines, in a way that any thread can end. Runs on the connecting thread, without a lock.

psycopg's own `connect` can't be interrupted, and waits for ever on a silent network, so this module connects with
psycopg's public `pq` layer. Python resolves names, afresh for each connection: libpq would hold the GIL meanwhile.
"""

from __future__ import annotations

import selectors
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from random import shuffle
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ..flag import LONGEST
from .conninfo import MISREAD, cured, misread, plain, unreadable
from .waiting import GIVEN_UP, Abandoned, CancelToken, Connection

if TYPE_CHECKING:
    from ..types import DbConf

CONNECT_TIMEOUT = 10.0  # seconds for each address, unless the user or libpq's environment sets others
NO_TIMEOUT = 130.0  # seconds: libpq's 0 means the socket's own time-out, as in psycopg

# Arguments of psycopg.connect that make no difference to a connection that only listens or notifies.
_NOT_LIBPQ = ("autocommit", "prepare_threshold", "context", "row_factory", "cursor_factory")


class Server(ABC):
    """A server in place of PostgreSQL, if a callable `dbconf` returns one (`pgnotifier.testing`)."""

    @abstractmethod
    def connect(self, token: CancelToken, deadline: float | None) -> psycopg.Connection[Any]:
        """Connect to this server, as the function `connect` does."""


def connect(source: DbConf, token: CancelToken, deadline: float | None = None) -> psycopg.Connection[Any]:
    """Connect as `source` says, in autocommit mode, with the library's own settings added.

    Tries each address of each host in turn, each for `connect_timeout` seconds at most, until `deadline` (monotonic).
    Raises `psycopg.OperationalError`, and `psycopg.ProgrammingError` if libpq can't read `source`; nothing is open
    then.
    """
    if token.cancelled:
        raise Abandoned(GIVEN_UP)
    conf = source() if callable(source) else source
    if isinstance(conf, Server):
        return conf.connect(token, deadline)
    failures: list[tuple[str, psycopg.Error]] = []
    for params in _attempts(_parameters(conf)):
        where = ", ".join(f"{key} {params[key]!r}" for key in ("host", "hostaddr", "port") if params.get(key))
        try:
            if isinstance(unresolved := params.get("unresolved"), OSError):
                raise psycopg.OperationalError(f"failed to resolve host {params['host']!r}: {unresolved}")
            pgconn = _open(make_conninfo("", **params).encode(), token, deadline)
        except Abandoned:
            raise
        except psycopg.Error as error:
            failures.append((where, error))
        else:
            return Connection(pgconn)
    text = str(failures[-1][1])
    if len(failures) > 1:
        lines = "".join(f"\n- {where}: {error}" for where, error in failures)
        text = f"none of {len(failures)} attempts to connect succeeded:{lines}"
    raise type(failures[-1][1])(cured(text)) from None


def name_of(pgconn: pq.abc.PGconn) -> str:
    """Return the user and server of a connection, without a password: `ada@db.example:5432/app`."""
    return f"{pgconn.user.decode()}@{pgconn.host.decode()}:{pgconn.port.decode()}/{pgconn.db.decode()}"


def server_of(source: DbConf) -> str:
    """Return the user and server of a dbconf, without a password. Connects to nothing, and calls no callable."""
    if callable(source):
        return f"{getattr(source, '__qualname__', type(source).__name__)}()"
    try:
        params = _parameters(source)
    except Exception:
        return "a dbconf that libpq can't read"
    defaults = _defaults()
    user, host, port, db = (params.get(key) or defaults.get(key, "") for key in ("user", "host", "port", "dbname"))
    return f"{user}@{host}:{port}/{db}"


def _defaults() -> dict[str, str]:
    """Return libpq's defaults, the environment's among them."""
    return {o.keyword.decode(): o.val.decode() for o in pq.Conninfo.get_defaults() if o.val is not None}


def _parameters(conf: object) -> dict[str, Any]:
    """Return libpq's parameters. The user's mapping stays as it is."""
    render = getattr(conf, "render_as_string", None)  # a URL object of SQLAlchemy's
    if render is not None:
        conf = render(hide_password=False)
    if isinstance(conf, str):
        text, extra = conf, {}
    elif isinstance(conf, Mapping):
        extra = {key: value for key, value in conf.items() if key not in _NOT_LIBPQ}
        text = extra.pop("conninfo", "")
    else:
        raise TypeError(f"dbconf must be a str, a mapping or a callable that returns one, not {type(conf).__name__}")
    text = plain(text, is_url=render is not None)
    wrong: Exception | None = None
    try:
        params = dict(conninfo_to_dict(text, **extra))
        make_conninfo("", **params)
    except (psycopg.ProgrammingError, UnicodeError) as error:
        wrong = error
    if wrong is not None:
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
        # Raised here, so that no context of the error holds libpq's own text.
        raise psycopg.ProgrammingError(f"dbconf: {unreadable(text, wrong, known) if text else str(wrong).strip()}")
    if misread(text, params):
        raise psycopg.ProgrammingError(f"dbconf: {MISREAD}")
    params["client_encoding"] = "UTF8"
    params.setdefault("fallback_application_name", "pgnotifier")
    return params


def _attempts(params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parameters of the connections to try in turn: one for each address of each host."""
    if "service" in params:  # only libpq can read it
        yield params
        return
    defaults = _defaults()

    def listed(key: str) -> list[str]:
        return str(params.get(key) or defaults.get(key) or "").split(",")

    hosts, addresses, ports = listed("host"), listed("hostaddr"), listed("port")
    if misread("", {"host": ",".join(hosts), "port": ",".join(ports)}):  # they may come from the environment
        raise psycopg.ProgrammingError(f"dbconf: {MISREAD}")
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


def _open(conninfo: bytes, token: CancelToken, latest: float | None) -> pq.abc.PGconn:
    pgconn = pq.PGconn.connect_start(conninfo)
    try:
        deadline = monotonic() + _timeout(pgconn)
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
            if not token.wait(deadline, pgconn.socket, events):
                raise psycopg.errors.ConnectionTimeout("connection timeout expired")
        text = pgconn.error_message.decode(errors="replace").strip()
        raise psycopg.OperationalError(f"connection failed: {text}")
    except BaseException:
        pgconn.finish()
        raise


def _timeout(pgconn: pq.abc.PGconn) -> float:
    """Return connect_timeout in seconds, as libpq found it in parameters, environment or service file."""
    found = {o.keyword: o.val for o in pgconn.info}
    value = found.get(b"connect_timeout")
    if not value:
        return CONNECT_TIMEOUT * ((found.get(b"host") or b"").count(b",") + 1)
    try:
        seconds = int(value[:20])  # more digits are as good as never
    except ValueError:
        raise psycopg.ProgrammingError(f"connect_timeout must be whole seconds, not {value.decode()!r}") from None
    return NO_TIMEOUT if seconds <= 0 else min(max(2.0, seconds), LONGEST)  # two seconds: libpq's own least
