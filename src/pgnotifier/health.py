"""Whether a notifier works, for probes (guarantee 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .errors import shown

if TYPE_CHECKING:
    from .supervisor import Supervisor


class Health(NamedTuple):
    """What `health()` returns.

    - `live`: the threads are there, and no call has been running too long. If not, restart the process.
    - `ready`: it is live, and connected to a server that answers in time. If not, it may become so by itself.
    - `problems`: what is wrong, in words; empty if nothing is.
    """

    live: bool
    ready: bool
    problems: tuple[str, ...]


def examine(supervisor: Supervisor, max_call: float) -> Health:
    """Ask no server, and take no lock."""
    dead, unready = supervisor.problems()
    call = supervisor.calls.longest()
    if call is not None and call[2] > max_call:
        id, channel, seconds = call
        dead.append(
            f"subscriber {shown(id)} has been running for {seconds:.0f} s on channel {channel!r}, "
            f"longer than {max_call:g} s"
        )
    return Health(not dead, not dead and not unready, (*dead, *unready))
