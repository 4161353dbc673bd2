"""docs/recipes/opentelemetry.md: guarantee 11, as OpenTelemetry sees it."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from conftest import until
from pgnotifier import Notifier

from .conftest import Database
from .page import load


def collected(reader: InMemoryMetricReader) -> dict[str, dict[object, float]]:
    """`{instrument: {notifier: value}}`."""
    found: dict[str, dict[object, float]] = {}
    data = reader.get_metrics_data()
    for scope in (s for r in data.resource_metrics for s in r.scope_metrics):
        for metric in scope.metrics:
            values = {point.attributes["notifier"]: point.value for point in metric.data.data_points}
            found.setdefault(metric.name, {}).update(values)
    return found


def test_what_is_collected(database: Database) -> None:
    """Of two notifiers; while connected, with a failing callback, and while the database is down."""
    observe = load("opentelemetry.md", "metrics.py")["observe"]
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    try:
        with Notifier(database.dsn, retry_delay=(0.01, 0.1)) as n, Notifier(database.dsn) as other:
            observe(n, meter=provider.get_meter("one"))
            observe(other, "other", provider.get_meter("two"))
            n.subscribe("good", "orders", lambda *a: None)
            n.subscribe("bad", "orders", lambda *a: 1 / 0)
            n.notify("orders")
            until(lambda: collected(reader)["pgnotifier.failed"] == {"default": 1, "other": 0})
            until(lambda: collected(reader)["pgnotifier.delivered"]["default"] == 1)
            found = {name: values["default"] for name, values in collected(reader).items()}
            assert found == {
                "pgnotifier.received": 1,
                "pgnotifier.delivered": 1,
                "pgnotifier.failed": 1,
                "pgnotifier.dropped": 0,
                "pgnotifier.reconnects": 0,
                "pgnotifier.live": 1,
                "pgnotifier.ready": 1,
                "pgnotifier.pending": 0,
                "pgnotifier.longest_call": 0,
            }
            other.stop()
            with database.unreachable():
                until(lambda: collected(reader)["pgnotifier.ready"] == {"default": 0, "other": 0})
                assert collected(reader)["pgnotifier.live"] == {"default": 1, "other": 0}
            until(lambda: collected(reader)["pgnotifier.ready"]["default"] == 1)
            assert collected(reader)["pgnotifier.reconnects"]["default"] >= 1
    finally:
        provider.shutdown()
