"""Guarantee 11: the end of the interpreter, fork, Ctrl-C, and what stop() waits for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier, as_async


def script(server: str, body: str) -> subprocess.Popen[str]:
    text = "from pgnotifier import Notifier\nimport os, sys, threading, time\n" + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", text, server],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 10) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def test_exit_is_quiet(server: str) -> None:
    code, out, err = finish(
        script(
            server,
            """
            n = Notifier(sys.argv[1])
            n.subscribe(1, "a", lambda *a: time.sleep(30))
            n.notify("a")
            print("end")
            """,
        )
    )
    assert (code, out, err) == (0, "end\n", "")


@pytest.mark.parametrize("daemon", [True, False])
def test_exit_with_ten_stuck_notifiers_takes_a_second(server: str, daemon: bool) -> None:
    """Guarantee 11: they share it."""
    process = script(
        server,
        f"""
        all = [Notifier(sys.argv[1], daemon={daemon}) for _ in range(10)]
        begun = threading.Barrier(11)
        def stuck(*a):
            begun.wait()
            time.sleep(30)
        for n in all:
            n.subscribe(1, "a", stuck)
        all[0].notify("a")
        begun.wait()
        if not {daemon}:
            for n in all:
                n.stop(0)
        print("end", flush=True)
        """,
    )
    assert process.stdout is not None
    process.stdout.readline()
    since = time.monotonic()
    code, out, err = finish(process)
    assert (code, out, err) == (0, "", "")
    assert time.monotonic() - since < 1.5  # the interpreter's own end is in it


def test_autostart_false_makes_a_stopped_notifier(server: str, channel: str) -> None:
    """Guarantee 2: it connects nothing and starts no thread until `start()` or `with`; changes are recorded."""
    asked = []

    def dbconf() -> str:
        asked.append(1)
        return server

    before = threading.active_count()
    n = Notifier(dbconf, autostart=False)
    n.subscribe("s", channel, print)
    assert (n.is_running(), n.active_channels(), n.wait(0)) == (False, [], True)
    assert (threading.active_count(), asked) == (before, [])
    for _ in range(2):  # `with` starts a stopped one again, too
        with n:
            assert (n.is_running(), n.active_channels()) == (True, [channel])
            pid = n.status()["pid"]
            with n:  # is running
                assert n.status()["pid"] == pid
        assert not n.is_running()
    n.start()
    assert n.active_channels() == [channel]
    n.stop()


def test_autostart_false_cannot_start(channel: str) -> None:
    """Guarantee 2: what the constructor would raise, `start()` and `with` raise, and it is stopped."""
    n = Notifier("host=127.0.0.1 port=1", autostart=False)
    with pytest.raises(psycopg.OperationalError):
        n.start()
    with pytest.raises(psycopg.OperationalError), n:
        raise AssertionError("the block is not entered")
    assert not n.is_running()


def test_daemon_false_keeps_running_until_stop(server: str) -> None:
    code, out, err = finish(
        script(
            server,
            """
            n = Notifier(sys.argv[1], daemon=False)
            def last(*a):
                print("heard", flush=True)
                n.stop()
            def late():
                threading.main_thread().join()
                n.subscribe(1, "late", last)
                n.notify("late")
            if sys.version_info[:3] not in [(3, 12, 0), (3, 12, 1)]:
                threading.Thread(target=late, daemon=True).start()
            else:  # these refuse new threads once the main thread has ended
                n.subscribe(1, "late", last)
                n.notify("late")
            """,
        )
    )
    assert (code, out, err) == (0, "heard\n", "")


def test_ctrl_c_ends_a_daemon_false_script_without_a_traceback(server: str) -> None:
    process = script(server, "n = Notifier(sys.argv[1], daemon=False); print('ready', flush=True)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # the main thread's end cannot be seen from outside
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err) == (0, "")


def test_ctrl_c_interrupts_wait(server: str) -> None:
    process = script(
        server,
        """
        with Notifier(sys.argv[1]) as n:
            try:
                print("ready", flush=True)
                n.wait()
            except KeyboardInterrupt:
                print("interrupted")
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == (0, "interrupted\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_while_another_thread_changes_channels(server: str, channel: str) -> None:
    got: list[Any] = []
    with Notifier(server) as n:
        n.subscribe(1, channel, lambda *a: got.append(a[2]))
        done = threading.Event()

        def change() -> None:
            i = 0
            while not done.is_set():
                i += 1
                n.subscribe(2, f"{channel}{i % 3}", print)
                n.unsubscribe(2, f"{channel}{i % 3}")

        changer = threading.Thread(target=change)
        changer.start()
        try:
            for i in range(30):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        signal.alarm(10)
                        ok = not n.is_running() and channel in n.channels()
                        n.stop()
                        if i % 10 == 0:
                            heard = threading.Event()
                            n.subscribe("child", channel + "child", lambda *a, heard=heard: heard.set())
                            n.start()
                            n.notify(channel + "child")
                            ok = ok and heard.wait(5)
                            n.stop()
                        code = 0 if ok else 2
                    finally:
                        os._exit(code)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, i
                n.notify(channel, i)
        finally:
            done.set()
            changer.join()
        until(lambda: got == list(range(30)))


def test_stop_is_bounded_by_its_timeout(server: str, channel: str) -> None:
    release, entered = threading.Event(), threading.Event()

    def hang(*_: Any) -> None:
        entered.set()
        release.wait(30)

    n = Notifier(server)
    n.subscribe(1, channel, hang)
    n.notify(channel)
    assert entered.wait(10)
    began = time.monotonic()
    n.stop(timeout=0.3)
    assert 0.2 < time.monotonic() - began < 1.3
    release.set()


def test_no_call_begins_after_stop_or_mute_returned(server: str, channel: str) -> None:
    calls: list[int] = []
    with Notifier(server) as n, psycopg.connect(server, autocommit=True) as conn:
        for _ in range(20):
            n.start()
            n.subscribe(1, channel, lambda *a: calls.append(1))
            n.unmute_channels(channel)
            conn.execute("select pg_notify(%s, i::text) from generate_series(1, 2000) i", (channel,))
            until(lambda: calls)
            n.mute_channels(channel)
            seen = len(calls)
            time.sleep(0.005)
            assert len(calls) <= seen + 1  # the one already decided on
            n.stop()
            calls.clear()


def test_nothing_is_left_open(server: str, channel: str) -> None:
    with Notifier(server) as n:
        n.subscribe(1, channel, print)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        n.start()
        n.notify(channel)
        n.subscribe(2, channel + "x", print)
        n.unsubscribe(2, channel + "x")
        n.stop()
    until(lambda: len(os.listdir("/proc/self/fd")) <= before, 5)


def test_as_async_runs_and_cancels() -> None:
    """Guarantee 1: a blocking function, a coroutine function, an error, a cancellation."""
    import asyncio

    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def double(x: int) -> int:
        return 2 * x

    assert as_async(double, 4).result(5) == 8
    assert as_async(len, "abc").result(5) == 3
    assert isinstance(as_async(int, "x").exception(5), ValueError)
    future = as_async(forever)
    assert future.cancel()
    assert ended.wait(5) or future.cancelled()
