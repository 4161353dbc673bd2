"""docs/recipes/kubernetes.md: guarantees 2 and 11, as probes see them."""

from __future__ import annotations

import re
import signal
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from conftest import until

from .conftest import Database
from .page import RECIPES, blocks, process

PORTS = re.compile(r"port: (\d+)")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def test_the_probes(database: Database, tmp_path: Path) -> None:
    """Before the database is there, with it, after a loss, with a call that hangs; and the end."""
    code = blocks("kubernetes.md")["service.py"].replace("n.health()", "n.health(max_call=1.0)")
    code = code.replace("    print(payload", "    payload == 'hang' and threading.Event().wait(3)\n    print(payload")
    (tmp_path / "service.py").write_text(code.replace("import os\n", "import os\nimport threading\n", 1))
    url, log = f"http://127.0.0.1:{(port := free_port())}", tmp_path / "log"
    with ExitStack() as stack:
        with database.unreachable():
            service = process(tmp_path, "service.py", DATABASE_URL=database.dsn, PROBE_PORT=str(port))
            child = stack.enter_context(service)
            until(lambda: get(f"{url}/ready")[0] == 503 and get(f"{url}/live")[0] == 200, 20)
            until(lambda: "UTC: OperationalError" in get(f"{url}/ready")[1])
        until(lambda: get(f"{url}/ready") == (200, "ok\n"), 20)
        assert get(f"{url}/live") == (200, "ok\n")
        assert get(f"{url}/other")[0] == 404
        database.execute("select pg_notify('orders', '{\"id\": 42}')")
        until(lambda: "{'id': 42}" in log.read_text())
        with database.unreachable():
            until(lambda: get(f"{url}/ready")[0] == 503)
            assert get(f"{url}/live")[0] == 200
        until(lambda: get(f"{url}/ready")[0] == 200, 40)
        database.execute("select pg_notify('orders', 'hang')")
        until(lambda: get(f"{url}/live")[0] == 503)
        assert "subscriber 'billing' has been running for" in get(f"{url}/live")[1]
        assert get(f"{url}/ready")[0] == 503
        until(lambda: get(f"{url}/live")[0] == 200)
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0


def test_the_specification_asks_what_the_program_answers() -> None:
    text = (RECIPES / "kubernetes.md").read_text()
    code = blocks("kubernetes.md")["service.py"]
    assert set(re.findall(r"path: (\S+),", text)) == set(re.findall(r'"(/\w+)"', code)) == {"/live", "/ready"}
    assert set(PORTS.findall(text)) == set(re.findall(r'"PROBE_PORT", "(\d+)"', code))
