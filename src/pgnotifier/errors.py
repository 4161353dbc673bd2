"""pgnotifier's own errors, and how their texts show a value.

Errors of the server stay `psycopg.Error`.
"""

try:
    import psycopg
except ImportError as _error:
    from .libpq import missing

    raise missing(_error) from _error


class NotifierError(Exception):
    """The base of the library's own errors. Each text names the value and the limit."""


class InvalidChannel(NotifierError, ValueError):
    """A channel name that is empty, over 63 bytes in UTF-8, or holds NUL or a lone surrogate; nothing was changed."""


class _KeyError(NotifierError, KeyError):
    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would show the repr of the text


class UnknownChannel(_KeyError):
    """Muting or unmuting a channel that is not registered; nothing was changed."""


class UnknownSubscriber(_KeyError):
    """Muting or unmuting a subscription that is not registered; nothing was changed."""


class PayloadTooLong(NotifierError, ValueError):
    """A payload of 8,000 bytes or more, which PostgreSQL refuses; nothing was sent."""


class StreamClosed(NotifierError):
    """Reading from a stream that is closed, or whose notifier is stopped; nothing more comes."""


class CannotListen(NotifierError, psycopg.OperationalError):
    """The session cannot hold a LISTEN: a standby, or a pooler in transaction mode. The text says what to do.

    Raised by construction and `start()`, which leave nothing behind; later it counts as a lost connection.
    """


def shown(value: object, most: int = 100) -> str:
    """Return the first `most` characters of `repr(value)`, for an error's text. Never raises."""
    try:
        return repr(value)[:most]
    except Exception:
        return f"a {type(value).__name__} whose repr fails"
