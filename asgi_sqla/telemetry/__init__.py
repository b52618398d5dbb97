"""OpenTelemetry: a span for the end of each unit of work, and metrics of units and pools.

- ``instrument``: sends them for a ``Database``.

The extra ``telemetry`` installs what it needs, which is OpenTelemetry's API. The SDK and its exporters are yours.
"""

from asgi_sqla.telemetry.instrumenting import instrument

__all__ = ["instrument"]
