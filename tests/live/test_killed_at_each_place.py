"""Guarantees 5 and 10: the session is killed at each place of a change or a start; no loss goes without a gap."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest

from conftest import until
from oracle import Heard, problems, send
from pgnotifier import Notifier
from test_change_in_start import At


@pytest.mark.parametrize("how", ["subscribe", "unsubscribe", "mute_channels", "unmute_channels", "start"])
def test_killed(server: str, sender: psycopg.Connection[Any], channel: str, how: str) -> None:
    """The call returns, or start() raises OperationalError; then all is listened to again, as it was asked for."""
    number = 0
    other = f"{channel}_other"
    heard = Heard(sent=lambda: number)
    raised: list[BaseException] = []

    def kill() -> None:
        sender.execute(
            "select pg_terminate_backend(pid, 1000) from pg_stat_activity"
            " where application_name = 'pgnotifier' and pid <> pg_backend_pid()"
        )

    with Notifier(server, retry_delay=(0.001, 0.01)) as n:
        n.subscribe("s", channel, heard.fn, on_listen=heard.told)
        until(lambda: heard.items)
        for place in range(1, 400, 3):
            n.unsubscribe("t", other)
            if how != "subscribe":
                n.subscribe("t", other, print)
                n.unmute_channels(other)
            if how == "unmute_channels":
                n.mute_channels(other)
            if how == "start":
                n.stop()

            def call() -> None:
                try:
                    if how == "subscribe":
                        n.subscribe("t", other, print)
                    elif how == "unsubscribe":
                        n.unsubscribe("t", other)
                    elif how == "start":
                        n.start()
                    else:
                        getattr(n, how)(other)
                except psycopg.OperationalError as error:
                    raised.append(error)

            at = At(place)
            at.run(call, kill)
            if how == "start":
                if raised and not n.is_running():
                    with contextlib.suppress(psycopg.OperationalError):
                        n.start()
                raised.clear()
            assert not raised
            wanted = [channel] if how in ("unsubscribe", "mute_channels") else [channel, other]
            number += 1
            send(sender, channel, number)  # while it is connecting again, perhaps
            until(lambda: n.status()["connected"] and n.active_channels() == wanted)  # noqa: B023
            number += 1
            send(sender, channel, number)
            with contextlib.suppress(AssertionError):  # killed after it was seen to be connected: a gap comes
                until(lambda: heard.entered == number, 1)  # noqa: B023
            if not at.reached:
                break
        number += 1
        until(lambda: n.status()["connected"])
        send(sender, channel, number)
        until(lambda: heard.entered == number)
        assert problems(heard, list(range(1, number + 1))) == []
        assert {gap.reason for gap in heard.gaps} <= {"connection", "stopped"}
        assert place > 10
