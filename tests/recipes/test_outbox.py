"""docs/recipes/outbox.md: what commits is sent, in order, through failures of the receiver; nothing else is."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psycopg

from conftest import until

from .page import blocks, load, process, write


def test_what_commits_is_sent_although_the_receiver_fails(server: str, tmp_path: Path, monkeypatch: object) -> None:
    answers = [503, 200, 503, 503, 200, 200]
    had: list[tuple[str, bytes, int]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = answers.pop(0) if answers else 200
            had.append((self.headers["Idempotency-Key"], body, status))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver) as receiver, psycopg.connect(server, autocommit=True) as conn:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        conn.execute("drop schema if exists pgnotifier cascade")
        conn.execute("create table orders (id bigint generated always as identity, customer text)")
        try:
            hook = f"http://127.0.0.1:{receiver.server_port}"
            write("outbox.md", tmp_path, *blocks("outbox.md"))
            page = load("outbox.md", "outbox.py")
            page["journal"].__init__(server)
            page["journal"].install()
            with process(tmp_path, "outbox.py", DATABASE_URL=server, HOOK=hook):
                until(lambda: [c for c in page["journal"].status()["consumers"] if c["active"]], 20)
                for customer in ("Ada", "Bob", "Cyd"):
                    with conn.transaction():
                        page["place_order"](conn, customer)
                    with conn.transaction(force_rollback=True):
                        page["place_order"](conn, "nobody")
                until(lambda: [status for _, _, status in had].count(200) == 3, 20)
            sent = [(key, body) for key, body, status in had if status == 200]
            assert [body.split(b'"')[-2] for _, body in sent] == [b"Ada", b"Bob", b"Cyd"]
            assert len({key for key, _ in sent}) == 3
            assert len(had) > 3
            page["journal"].close()
        finally:
            receiver.shutdown()
            conn.execute("drop table orders; drop schema if exists pgnotifier cascade")
