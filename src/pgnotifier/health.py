"""The state of a notifier, for probes (guarantee 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .errors import shown

if TYPE_CHECKING:
    from .supervisor import Supervisor


class Health(NamedTuple):
    """The result of `health()`.

    - `live`: all threads run, and no call has been running too long. If it is False, restart the process.
    - `ready`: live, and connected to a server that answers in time. If it is False, it may become True by itself.
    - `problems`: a text for each problem.
    """

    live: bool
    ready: bool
    problems: tuple[str, ...]


def examine(supervisor: Supervisor, max_call: float) -> Health:
    """Return the health of a notifier. Any thread; sends nothing to the server, and takes no lock."""
    dead, unready = supervisor.problems()
    call = supervisor.calls.longest()
    if call is not None and call[2] > max_call:
        id, channel, seconds = call
        dead.append(
            f"subscriber {shown(id)} has been running for {seconds:.0f} s on channel {channel!r}, "
            f"longer than {max_call:g} s"
        )
    return Health(not dead, not dead and not unready, (*dead, *unready))
