"""Reports of units of work, and observers that log what deserves attention.

``Database(url, observe=[slow_log(1.0), repeated_statements(10)])`` calls each of them at the end of every unit that
used the database.

- ``slow_log``: logs units that took long, and where the time went.
- ``repeated_statements``: logs units that sent the same statement again and again.
- ``idle_in_transaction``: logs units that held a connection and asked nothing of it.
- ``failed_log``: logs units that could not be committed.
- ``server_timing``: adds the header ``Server-Timing`` to responses.
- ``Report``, ``DatabaseReport``, ``StatementReport``, ``EndReport``: what an observer receives.
- ``Observer``: the type of one.
"""

from asgi_sqla.observe.listeners import failed_log, idle_in_transaction, repeated_statements, server_timing, slow_log
from asgi_sqla.unit.report import DatabaseReport, EndReport, Observer, Report, StatementReport

__all__ = [
    "DatabaseReport",
    "EndReport",
    "Observer",
    "Report",
    "StatementReport",
    "failed_log",
    "idle_in_transaction",
    "repeated_statements",
    "server_timing",
    "slow_log",
]
