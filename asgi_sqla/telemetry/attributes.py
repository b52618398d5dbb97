"""The attributes of spans and metrics, by OpenTelemetry's semantic conventions for databases.

Holds: their names and values, for a database and for a unit.
Must not know: spans, metrics, or how anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from asgi_sqla.engine.pools import Role
from asgi_sqla.observe import DatabaseReport, EndReport, Report

Attributes: TypeAlias = Mapping[str, str | int]

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions that the names are from."""

SYSTEM, NAMESPACE, OPERATION = "db.system.name", "db.namespace", "db.operation.name"
ADDRESS, PORT, ERROR = "server.address", "server.port", "error.type"
POOL, STATE = "db.client.connection.pool.name", "db.client.connection.state"
NAME, KIND, OUTCOME = "asgi_sqla.unit.name", "asgi_sqla.unit.kind", "asgi_sqla.unit.outcome"
ATTEMPT, REASON = "asgi_sqla.unit.attempt", "asgi_sqla.unit.reason"

_SYSTEMS = {"mssql": "microsoft.sql_server", "oracle": "oracle.db"}
_KNOWN = frozenset(("cockroachdb", "mariadb", "mysql", "postgresql", "sqlite"))
_PORTS = {"cockroachdb": 26257, "mariadb": 3306, "mssql": 1433, "mysql": 3306, "oracle": 1521, "postgresql": 5432}


@lru_cache(maxsize=256)
def of_database(url: str, system: str | None = None) -> Attributes:
    """Return the attributes of a database: its system, its name, its host, and its port where that is not the usual.

    Its ``system`` is what the URL says if nothing else is known.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # an engine of a dialect with a URL of its own
        return {SYSTEM: "other_sql"}
    dialect = system or parsed.get_backend_name()
    found: dict[str, str | int] = {SYSTEM: _SYSTEMS.get(dialect, dialect if dialect in _KNOWN else "other_sql")}
    if parsed.database:
        found[NAMESPACE] = parsed.database
    host, port = _server(parsed)
    if host:
        found[ADDRESS] = host
        if port is not None and port != _PORTS.get(dialect):
            found[PORT] = port
    return found


def _server(url: URL) -> tuple[str | None, int | None]:
    """Return host and port, which may stand in the query; neither if there are several."""
    host, port = url.host or url.query.get("host"), url.port or url.query.get("port")
    if not isinstance(host, str):
        return None, None
    return host, int(port) if isinstance(port, int | str) and str(port).isdigit() else None


def target(attributes: Attributes) -> str:
    """Return what names the database in the name of a span and of a pool."""
    return str(attributes.get(NAMESPACE) or attributes.get(ADDRESS) or attributes[SYSTEM])


@lru_cache(maxsize=256)
def pool_name(url: str, role: Role, *, sync: bool) -> str:
    """Return the name of the pools of one role and one kind of session, such as ``localhost/shop write async``."""
    found = of_database(url)
    host = ":".join(str(found[key]) for key in (ADDRESS, PORT) if key in found)
    name = "/".join(filter(None, (host, str(found.get(NAMESPACE, "")))))
    return f"{name or found[SYSTEM]} {role} {'sync' if sync else 'async'}"


def of_end(one: DatabaseReport, end: EndReport) -> Attributes:
    """Return the attributes of a COMMIT or ROLLBACK that metrics have: each has few values."""
    error = {} if end.error is None else {ERROR: end.error}
    return {**of_database(one.database, one.system), OPERATION: end.operation, **error}


def of_span(attempt: Report, one: DatabaseReport, end: EndReport) -> Attributes:
    """Return the attributes of a COMMIT or ROLLBACK that spans have: those of metrics, and what the unit was."""
    unit: dict[str, str | int] = {
        NAME: attempt.name, KIND: attempt.kind, OUTCOME: attempt.outcome, ATTEMPT: attempt.attempt,
    }  # fmt: skip
    if attempt.reason is not None:
        unit[REASON] = attempt.reason
    return {**of_end(one, end), **unit}
