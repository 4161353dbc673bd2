"""Guarantees 5, 9 and 11: what is cut short in the middle, by Ctrl-C or for want of threads, is made good later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from conftest import until
from pgnotifier import Notifier
from pgnotifier.connection import CancelToken, Session
from pgnotifier.shared import Shared
from pgnotifier.supervisor import Supervisor

Conn = psycopg.Connection[Any]


def once(f: Callable[..., Any], error: BaseException, after: bool = False) -> Callable[..., Any]:
    """`f`, but `error` the first time that the main thread calls it, instead of it or after it."""
    left = [error]

    def g(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return f(*args, **options)
        if left and not after:
            raise left.pop()
        result = f(*args, **options)
        if left:
            raise left.pop()
        return result

    return g


def heard(n: Notifier, sender: Conn, channel: str) -> None:
    """A subscription on the channel hears what is sent."""
    got: list[Any] = []
    n.subscribe("probe", channel, lambda id, name, payload, pid: got.append(payload))
    sender.execute("select pg_notify(%s, '1')", (channel,))
    until(lambda: got == [1])


@pytest.mark.parametrize("step", ["commit", "difference"])
@pytest.mark.parametrize("how", ["unsubscribe", "mute_channels"])
def test_ctrl_c_in_a_change(
    server: str, sender: Conn, channel: str, how: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 11: the next stop() cleans up, the next start() works, and nothing is deaf."""
    with Notifier(server) as n:
        n.subscribe(1, channel, print)
        with monkeypatch.context() as patch:
            patch.setattr(Shared, step, once(getattr(Shared, step), KeyboardInterrupt()))
            try:
                n.unsubscribe(1, channel) if how == "unsubscribe" else n.mute_channels(channel)
            except KeyboardInterrupt:
                pass
        n.unmute_channels()
        heard(n, sender, channel)
        n.stop()
        n.start()
        heard(n, sender, channel)


def test_ctrl_c_while_the_listener_thread_is_being_made(
    server: str, sender: Conn, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 11: it has an identity by then, and cannot be joined yet."""
    with Notifier(server) as n:
        n.stop()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "ident", property(lambda thread: 1))
            patch.setattr("pgnotifier.threads.start", once(lambda _: None, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                n.start()
        n.start()
        heard(n, sender, channel)


def test_ctrl_c_in_start_leaves_nothing_half_begun(
    server: str, sender: Conn, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 5: is_running() is false, and the next start() begins."""
    with Notifier(server) as n:
        n.stop()
        for target, name in (
            ("pgnotifier.listener.Listener", "start"),
            ("pgnotifier.delivery.Dispatcher", "begin"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(f"{target}.{name}", once(lambda *_: None, KeyboardInterrupt()))
                with pytest.raises(KeyboardInterrupt):
                    n.start()
            assert not n.is_running()
        n.start()
        heard(n, sender, channel)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("owner", "step"), [(Supervisor, "_finish"), (Shared, "end")])
def test_ctrl_c_in_stop_is_made_good_by_the_next(
    server: str, sender: Conn, channel: str, after: bool, owner: type, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 11: nothing stays open, and no thread is left."""
    n = Notifier(server)
    pid = n.status()["pid"]
    monkeypatch.setattr(owner, step, once(getattr(owner, step), KeyboardInterrupt(), after))
    with pytest.raises(KeyboardInterrupt):
        n.stop()
    n.stop()
    assert not n.is_running()
    row = ("select count(*) from pg_stat_activity where pid = %s", (pid,))
    until(lambda: sender.execute(*row).fetchone() == (0,))
    n.start()
    heard(n, sender, channel)
    n.stop()


def test_ctrl_c_before_the_workers_are_woken(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 11: the next stop() wakes them, and waits for nothing else."""
    n = Notifier(server)
    with monkeypatch.context() as patch:
        patch.setattr(Shared, "report", once(Shared.report, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            n.stop()
    began = time.monotonic()
    n.stop()
    assert time.monotonic() - began < 5


def test_no_more_threads(server: str, sender: Conn, channel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 5: where no thread can be started after a change, the old one listens on; start() raises."""
    start, refusals = threading.Thread.start, list[threading.Thread]()

    def refused(thread: threading.Thread) -> None:
        if thread.name == "pgnotifier-listener":
            refusals.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    with Notifier(server) as n:
        n.subscribe(1, channel, print)
        for number in range(10):
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refused)
                heard(n, sender, f"{channel}_{number}")
                sender.execute("select pg_notify(%s, '1')", (f"{channel}_{number}",))
            n.remove_channels(f"{channel}_{number}")
            heard(n, sender, channel)
            n.unsubscribe("probe", channel)
        assert refusals
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            n.subscribe(1, f"{channel}_b", print)
            n.stop()
            with pytest.raises(RuntimeError, match="new thread"):
                n.start()
        assert not n.is_running()
        n.start()
        heard(n, sender, channel)


def test_a_signal_handler_that_restarts_within_a_change(
    server: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantees 3 and 5: 0.0.10's private seam may be called anywhere, too."""
    with Notifier(server) as n:
        n.subscribe(1, channel, print, autorun=False)
        listen = Session.listen

        def interrupted(self: Session, *args: Any) -> None:
            monkeypatch.setattr(Session, "listen", listen)
            n._Notifier__maybe_restart()  # type: ignore[attr-defined]
            listen(self, *args)

        monkeypatch.setattr(Session, "listen", interrupted)
        n.subscribe(1, f"{channel}_b", print)
        assert n.active_channels() == [channel, f"{channel}_b"]


def test_a_change_under_a_stream_that_does_not_pause(server: str, channel: str) -> None:
    """Guarantees 9 and 10: what arrives before the answer is delivered; the call returns when the stream pauses."""
    count, flooding = [0], threading.Event()
    flooding.set()

    def flood() -> None:
        with psycopg.connect(server, autocommit=True) as conn:
            while flooding.is_set():
                conn.execute(f"select pg_notify('{channel}', g::text) from generate_series(1, 20000) g".encode())

    def fn(*_: Any) -> None:
        count[0] += 1

    with Notifier(server) as n:
        n.subscribe("counts", channel, fn)
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            until(lambda: count[0] > 20_000)
            change = threading.Thread(target=n.subscribe, args=("more", f"{channel}_b", print))
            change.start()
            before = count[0]
            until(lambda: count[0] > before + 200_000, 60)
        finally:
            flooding.clear()
            thread.join(60)
        change.join(60)
        assert not change.is_alive()
        assert f"{channel}_b" in n.active_channels()
        assert n.status()["reconnects"] == 0
        assert n.status()["dropped"] == 0


def test_a_session_that_is_verified_again_before_the_answer_was_read(server: str, sender: Conn, channel: str) -> None:
    """Guarantee 10: a notification that comes first says as much as the answer, which is read later."""
    token = CancelToken()
    session = Session(server, 10.0, token)
    try:
        session.listen([channel])
        for number in range(20):
            sender.execute("select pg_notify(%s, %s)", (channel, str(number)))
            session.verify()
            session.listen([f"{channel}_{number}"])
            session.verify()
        until(lambda: (session.read(), sum(len(batch.notifications) for batch in session.backlog) == 20)[1])
        got = [n.payload for batch in session.backlog for n in batch.notifications]
        assert got == [str(number) for number in range(20)]
    finally:
        session.close()
        token.close()


@pytest.mark.parametrize("step", ["_bootstrap_inner", "_set_native_id"])
def test_a_finalizer_in_a_listener_thread_that_begins(
    server: str, sender: Conn, channel: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 11: the collector may run before Python knows the thread; a change then must not wait for it."""
    with Notifier(server) as n:
        f, left = getattr(threading.Thread, step), [1]

        def finalized(thread: threading.Thread) -> None:
            if thread.name == "pgnotifier-listener" and left:
                left.pop()
                n.subscribe("finalizer", f"{channel}_f", print)
            f(thread)

        monkeypatch.setattr(threading.Thread, step, finalized)
        n.subscribe(1, channel, print)
        until(lambda: f"{channel}_f" in n.active_channels())
        assert not left
        heard(n, sender, channel)
