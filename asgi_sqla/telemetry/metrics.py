"""The metrics of units of work and of pools.

Holds: the instruments, and what each is given.
Must not know: spans, or who exports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from asgi_sqla.database import Database
from asgi_sqla.engine.pools import PoolStatus
from asgi_sqla.observe import Report
from asgi_sqla.telemetry import attributes as named

BUCKETS: list[float] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]
"""Seconds, as the conventions ask for operations of databases."""

_HISTOGRAMS = (
    ("db.client.operation.duration", "Duration of COMMIT and ROLLBACK."),
    ("db.client.connection.wait_time", "How long a unit of work waited for a connection."),
    ("db.client.connection.use_time", "How long a unit of work held a connection."),
)
_GAUGES: tuple[tuple[str, str, str, Callable[[PoolStatus], dict[str | None, int | None]]], ...] = (
    ("count", "{connection}", "Open connections, by state.", lambda one: {"idle": one.idle, "used": one.out}),
    ("idle.max", "{connection}", "How many connections the pool keeps open.", lambda one: {None: one.size}),
    ("max", "{connection}", "How many connections the pool may open.", lambda one: {None: one.max}),
    ("pending_requests", "{request}", "Who waits for a connection.", lambda one: {None: one.waiting}),
)


class Metrics:
    """The instruments of one meter, and the databases whose pools they show."""

    def __init__(self, meter: Meter) -> None:
        self.databases: WeakSet[Database] = WeakSet()
        self._units = meter.create_counter("asgi_sqla.units", "{unit}", "Units of work that have ended.")
        self._retries = meter.create_counter("asgi_sqla.retries", "{retry}", "Attempts after the first.")
        self._operations, self._waits, self._uses = (
            meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=BUCKETS)
            for name, text in _HISTOGRAMS
        )
        for name, unit, text, values in _GAUGES:
            callbacks = [_Observed(self.databases, values)]
            meter.create_observable_up_down_counter(f"db.client.connection.{name}", callbacks, unit, text)

    def record(self, report: Report) -> None:
        """Count a unit and its attempts, and record the times of each of its sessions."""
        self._units.add(1, {named.KIND: report.kind, named.OUTCOME: report.outcome})
        if report.attempts:
            self._retries.add(len(report.attempts), {named.KIND: report.kind})
        for attempt in (*report.attempts, report):
            for one in attempt.databases:
                if not (one.held or one.waiting):  # it was not used
                    continue
                pool = {named.POOL: named.pool_name(one.database, one.role, sync=one.sync)}
                self._waits.record(one.waiting, pool)
                self._uses.record(one.held, pool)
                for end in one.ends:
                    self._operations.record(end.seconds, named.of_end(one, end))


class _Observed:
    """Reads one number of every pool, when it is asked for; pools with the same name are added up."""

    def __init__(
        self, databases: Iterable[Database], values: Callable[[PoolStatus], dict[str | None, int | None]]
    ) -> None:
        self._databases = databases
        self._values = values

    def __call__(self, _options: CallbackOptions) -> Iterator[Observation]:
        sums: Counter[tuple[str, str | None]] = Counter()
        for database in list(self._databases):
            for one in database.pools() if database.configured else ():
                name = named.pool_name(one.database, one.role, sync=one.kind == "sync")
                for state, value in self._values(one).items():
                    if value is not None:
                        sums[name, state] += value
        for (name, state), value in sums.items():
            yield Observation(value, {named.POOL: name, **({} if state is None else {named.STATE: state})})
