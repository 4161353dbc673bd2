"""docs/recipes/prometheus.md: guarantee 11, as Prometheus sees it."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from conftest import until
from pgnotifier import Notifier

from .conftest import Database
from .page import RECIPES, blocks, load


def scraped(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    assert all(s.labels == {"notifier": "default"} for s in samples if s.name.startswith("pgnotifier_"))
    return {sample.name: sample.value for sample in samples}


def test_what_is_scraped(database: Database) -> None:
    """While connected, with a failing callback, and while the database is down."""
    code = blocks("prometheus.md")["main.py"]
    assert "start_http_server(9187)" in code
    with Notifier(database.dsn, retry_delay=(0.01, 0.1)) as n:
        names = load("prometheus.md", "metrics.py", n=n, own=CollectorRegistry())
        code = code.replace("REGISTRY.", "own.").replace("(9187)", "(0, registry=own)")
        exec(code.replace("\nstart_http", "\nweb, thread = start_http"), names)
        web: Any = names["web"]
        try:
            url = f"http://127.0.0.1:{web.server_port}/metrics"
            n.subscribe("good", "orders", lambda *a: None)
            n.subscribe("bad", "orders", lambda *a: 1 / 0)
            n.notify("orders")
            until(lambda: scraped(url)["pgnotifier_failed_total"] == 1)
            until(lambda: scraped(url)["pgnotifier_delivered_total"] == 1)
            found = scraped(url)
            assert (found["pgnotifier_received_total"], found["pgnotifier_dropped_total"]) == (1, 0)
            assert (found["pgnotifier_live"], found["pgnotifier_ready"], found["pgnotifier_pending"]) == (1, 1, 0)
            assert found["pgnotifier_longest_call_seconds"] == 0
            confirmed = n.status()["confirmed"]
            assert confirmed is not None
            assert found["pgnotifier_confirmed_timestamp_seconds"] <= confirmed.timestamp()
            with database.unreachable():
                until(lambda: scraped(url)["pgnotifier_ready"] == 0)
                assert scraped(url)["pgnotifier_live"] == 1
            until(lambda: scraped(url)["pgnotifier_reconnects_total"] >= 1)
            until(lambda: scraped(url)["pgnotifier_ready"] == 1)
            alerts = re.findall(r"expr:.*?(pgnotifier_\w+)", (RECIPES / "prometheus.md").read_text())
            assert len(alerts) == 3
            assert set(alerts) <= scraped(url).keys()
        finally:
            web.shutdown()
            web.server_close()
            names["thread"].join(10)


def test_a_notifier_that_was_never_started() -> None:
    names = load("prometheus.md", "metrics.py")
    n = Notifier("host=nowhere.invalid", autostart=False)
    found = {metric.name: metric.samples[0].value for metric in names["NotifierCollector"](n).collect()}
    assert found["pgnotifier_live"] == found["pgnotifier_received"] == 0
    assert "pgnotifier_confirmed_timestamp_seconds" not in found
