"""The spans of a unit of work: one for each COMMIT or ROLLBACK that ended it, of each attempt.

Holds: when a span is made, its times, its status and its parent.
Must not know: the spans of statements, which are the instrumentation's of SQLAlchemy.
"""

from __future__ import annotations

from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from asgi_sqla.observe import DatabaseReport, EndReport, Report
from asgi_sqla.telemetry import attributes as named

NANOSECONDS = 1_000_000_000


def send(tracer: Tracer, report: Report) -> None:
    """Make a span for each end, below the span that is current: that of the request, or of what opened the scope."""
    for attempt in (*report.attempts, report):
        for one in attempt.databases:
            for end in one.ends:
                _send(tracer, attempt, one, end)


def _send(tracer: Tracer, attempt: Report, one: DatabaseReport, end: EndReport) -> None:
    attributes = named.of_span(attempt, one, end)
    name = f"{end.operation} {named.target(attributes)}"
    began = round(end.started * NANOSECONDS)
    span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes, start_time=began)
    if end.error is not None:
        span.set_status(Status(StatusCode.ERROR, attempt.reason))
    span.end(began + round(end.seconds * NANOSECONDS))
