"""``instrument()``: OpenTelemetry for a ``Database``.

Holds: what a user calls, and the observer that makes spans and metrics of a report.
Must not know: the conventions.
"""

from __future__ import annotations

from functools import cache

from asgi_sqla.database import Database
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError, needing
from asgi_sqla.observe import Report
from asgi_sqla.observe.adding import add_observer
from asgi_sqla.session.observed import observers_of

with needing("telemetry", "asgi_sqla.telemetry"):
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import TracerProvider, get_tracer

from asgi_sqla.telemetry import spans
from asgi_sqla.telemetry.attributes import SCHEMA
from asgi_sqla.telemetry.metrics import Metrics


def instrument(
    database: Database,
    *more: Database,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Send a span for the end of each unit of work, and metrics of units and pools, to OpenTelemetry.

    Call it once for each ``Database``, before or after the SDK is set up. The span of a COMMIT or ROLLBACK is below
    the span that is current around the middleware or the scope. Statements have spans of the instrumentation of
    SQLAlchemy, not of this one.

    - ``database``: the ``Database`` to instrument.
    - ``*more``: others, with the same providers.
    - ``tracer_provider``: who makes the spans; default: OpenTelemetry's global one.
    - ``meter_provider``: who makes the metrics; default: OpenTelemetry's global one.

    Raises ConfigurationError for what is not a ``Database`` or a provider, and for a ``Database`` that is instrumented
    already.
    """
    for name, given, kind in (
        ("tracer_provider", tracer_provider, TracerProvider),
        ("meter_provider", meter_provider, MeterProvider),
    ):
        if given is not None and not isinstance(given, kind):
            raise ConfigurationError(
                f"{name}={hidden(given)} is no {kind.__name__}; write one of OpenTelemetry's SDK, or leave it out"
            )
    observer = _observer(tracer_provider, meter_provider)
    databases = (database, *more)
    for one in databases:
        if not isinstance(one, Database):
            raise ConfigurationError(f"instrument({hidden(one)}) is given no Database; write instrument(db)")
        if any(isinstance(each, _Telemetry) for each in observers_of(one)):
            raise ConfigurationError(f"instrument({one!r}): it is instrumented already; call instrument() once for it")
    for one in databases:
        observer.metrics.databases.add(one)
        add_observer(one, observer)


class _Telemetry:
    """The observer of every database with the same providers."""

    def __init__(self, tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> None:
        self._tracer = get_tracer("asgi_sqla", tracer_provider=tracer_provider, schema_url=SCHEMA)
        self.metrics = Metrics(get_meter("asgi_sqla", meter_provider=meter_provider, schema_url=SCHEMA))

    def __call__(self, report: Report) -> None:
        spans.send(self._tracer, report)
        self.metrics.record(report)


@cache
def _observer(tracer_provider: TracerProvider | None, meter_provider: MeterProvider | None) -> _Telemetry:
    """Return the one observer of these providers, as a second meter of the same name would count twice."""
    return _Telemetry(tracer_provider, meter_provider)
