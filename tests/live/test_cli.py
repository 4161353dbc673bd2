"""Guarantee 14: `listen` and `notify` as processes, in pipes and on a terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from command import environ, listening, on_terminal, run, started
from conftest import until

ESCAPE = "\x1b"


def send(conn: psycopg.Connection[Any], channel: str, *payloads: str) -> None:
    for payload in payloads:
        conn.execute("select pg_notify(%s, %s)", (channel, payload))


# -- listen ---------------------------------------------------------------------------------------------------------


def test_listen_json(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    sent = ['{"a": null}', "text é", "{'t': (1, 2)}", "b'x'", "[1e999]", "", r'"\ud800"', "two\nlines"]
    with started("listen", "--json", "-n", str(len(sent)), "-d", server, channel, channel + "2") as process:
        listening(process)
        send(sender, channel + "2", sent[0])
        send(sender, channel, *sent[1:])
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    got = [json.loads(line) for line in out.splitlines()]
    assert [n["payload"] for n in got] == [
        {"a": None},
        "text é",
        {"t": [1, 2]},
        "b'x'",
        "[1e999]",
        "",
        "\ud800",
        "two\nlines",
    ]
    assert [n["channel"] for n in got] == [channel + "2"] + [channel] * 7
    assert {n["pid"] for n in got} == {sender.info.backend_pid}
    for n in got:
        assert list(n) == ["time", "channel", "payload", "pid"]
        assert abs(datetime.fromisoformat(n["time"]) - datetime.now(timezone.utc)) < timedelta(minutes=1)
        assert n["time"].endswith("+00:00")


def test_listen_json_is_utf_8_whatever_the_locale(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    env = environ(PYTHONIOENCODING="latin-1")
    with started("listen", "--json", "-n1", "-d", server, channel, env=env, encoding="utf-8") as process:
        listening(process)
        send(sender, channel, "€ 😀")
        assert json.loads(process.communicate(timeout=20)[0])["payload"] == "€ 😀"


def test_listen_writes_each_line_at_once_and_plain(
    server: str, sender: psycopg.Connection[Any], channel: str
) -> None:
    with started("listen", "-d", server, channel) as process:
        assert process.stdout is not None
        listening(process)
        for payload, shown in [("one", "one"), ("a\nb\x1b[31m", "a\\nb\\x1b[31m")]:
            send(sender, channel, payload)
            time, *rest = process.stdout.readline().rstrip("\n").split("  ", 3)  # would hang if it were buffered
            assert datetime.fromisoformat(time).tzinfo is not None
            assert rest == [channel, str(sender.info.backend_pid), shown]


def test_ctrl_c_is_130_without_a_traceback(server: str, channel: str) -> None:
    with started("listen", "-d", server, channel) as process:
        listening(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("write_again", [False, True])
def test_a_closed_pipe_ends_it(server: str, sender: psycopg.Connection[Any], channel: str, write_again: bool) -> None:
    """`| head -1`: noticed without another notification, and with one that comes at once."""
    with started("listen", "-d", server, channel) as process:
        assert process.stdout is not None
        listening(process)
        send(sender, channel, "first")
        assert process.stdout.readline().endswith("  first\n")
        process.stdout.close()
        if write_again:
            sender.execute("select pg_notify(%s, i::text) from generate_series(1, 5000) i", (channel,))
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_burst_arrives_whole(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    with started("listen", "-q", "-n", "50000", "-d", server, channel, "--json") as process:
        until(lambda: sender.execute("select 1 from pg_stat_activity where query ~ %s", (channel,)).fetchone())
        sender.execute("select pg_notify(%s, i::text) from generate_series(0, 49999) i", (channel,))
        out, err = process.communicate(timeout=60)
    assert [json.loads(line)["payload"] for line in out.splitlines()] == list(range(50000))
    assert (process.returncode, err) == (0, "")


def test_a_lost_connection_is_shown_and_taken_up_again(
    server: str, sender: psycopg.Connection[Any], channel: str
) -> None:
    """Guarantee 10 through the command line: disconnected, reconnected, the gap, and what comes then."""
    others = [f"{channel}{n}" for n in range(3)]
    with started("listen", "--json", "-d", server, channel, *others) as process:
        assert process.stdout is not None
        listening(process)
        ended = sender.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where query ~ %s and pid <> pg_backend_pid()",
            (channel,),
        )
        assert ended.fetchall() == [(True,)]
        events: list[dict[str, Any]] = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert [event["event"] for event in events] == ["disconnected", "reconnected", "gap"]
        send(sender, channel, "after")
        assert json.loads(process.stdout.readline())["payload"] == "after"
    gap = events[-1]
    assert (gap["channels"], gap["reason"]) == ([channel, *others], "connection")
    assert datetime.fromisoformat(gap["since"]) <= datetime.fromisoformat(gap["until"])


# -- on a terminal --------------------------------------------------------------------------------------------------


def test_a_terminal_has_colours_and_a_counter(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    with on_terminal("listen", "-d", server, channel) as terminal:
        terminal.read_until(lambda text: "0 received" in text)
        send(sender, channel, "x" * 300, f"{ESCAPE}[2J")
        text = terminal.read_until(lambda text: "2 received" in text)
        assert f"{ESCAPE}[1;36m{channel}" in text
        assert "x" * 300 in text  # not cut at the edge
        assert "\\x1b[2J" in text
        assert f"{ESCAPE}[2J" not in text  # a payload commands no terminal
        assert f"listening to {channel} (Ctrl-C ends)" not in text  # the live line says it
        assert f"listening to {channel}: 2 received (Ctrl-C ends)" in text
        terminal.process.send_signal(signal.SIGINT)
        assert "Traceback" not in terminal.ended()
        assert terminal.process.returncode == 130


def test_a_terminal_gets_its_cursor_back(server: str, channel: str) -> None:
    for number, status in [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]:
        if signal.getsignal(number) == signal.SIG_IGN:
            continue  # as under nohup, and so in the command too
        with on_terminal("listen", "-d", server, channel) as terminal:
            hidden = terminal.read_until(lambda text: "0 received" in text)
            assert f"{ESCAPE}[?25l" in hidden
            terminal.process.send_signal(number)
            text = terminal.ended()
            assert text.rindex(f"{ESCAPE}[?25h") > text.rindex(f"{ESCAPE}[?25l")
            assert "Traceback" not in text
            assert terminal.process.returncode == status


def test_a_terminal_shows_that_it_waits_for_a_server(channel: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for command in ("listen", "notify"):
            with on_terminal(command, "-d", f"host=127.0.0.1 port={silent.getsockname()[1]}", channel) as terminal:
                terminal.read_until(lambda text: "connecting ..." in text)
                terminal.process.send_signal(signal.SIGINT)
                assert "Traceback" not in terminal.ended()
                assert terminal.process.returncode == 130


@pytest.mark.parametrize("how", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"without": "rich"}])
def test_a_terminal_may_be_plain(
    server: str, sender: psycopg.Connection[Any], channel: str, how: dict[str, str]
) -> None:
    """NO_COLOR, a dumb terminal, and no extra: the same lines without any escape."""
    with on_terminal("listen", "-n1", "-d", server, channel, **how) as terminal:
        terminal.read_until(lambda text: "listening to" in text)
        send(sender, channel, "x")
        text = terminal.ended()
        assert f"{channel}  {sender.info.backend_pid}  x" in text
        assert ESCAPE not in text
        assert terminal.process.returncode == 0


# -- notify ---------------------------------------------------------------------------------------------------------


def test_notify(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    sender.execute(f'listen "{channel}"')
    for args, stdin in [
        ([], ""),
        (['{"id":  42}'], ""),
        (["--", "--json"], ""),
        (["-5"], ""),
        (["é"], ""),
        (["-"], "one\n\n two \nlast"),
        (["-"], ""),
    ]:
        assert run("notify", "-d", server, channel, *args, stdin=stdin) == (0, "", "")
    got = [n.payload for n in sender.notifies(timeout=0.5)]
    assert got == ["", '{"id":  42}', "--json", "-5", "é", "one", "", " two ", "last"]


def test_notify_from_the_environment(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    info = sender.info
    env = {"PGHOST": info.host, "PGPORT": str(info.port), "PGUSER": info.user, "PGDATABASE": info.dbname}
    sender.execute(f'listen "{channel}"')
    assert run("notify", channel, "x", **env) == (0, "", "")
    assert [n.payload for n in sender.notifies(timeout=5, stop_after=1)] == ["x"]


def test_notify_sends_every_line_as_it_comes(server: str, sender: psycopg.Connection[Any], channel: str) -> None:
    sender.execute(f'listen "{channel}"')
    with started("notify", "-d", server, channel, "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for line in ("one", "two"):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert [n.payload for n in sender.notifies(timeout=20, stop_after=1)] == [line]


def test_notify_names_the_line_that_fails(server: str, channel: str) -> None:
    code, out, err = run("notify", "-d", server, channel, "-", stdin="ok\n" + "x" * 8000 + "\nnever\n")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "line 2" in err
    assert "7999 bytes" in err
