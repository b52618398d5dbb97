"""What an observer receives when a unit of work has ended: one report of what it asked of its databases.

It is a tuple with names, as a frozen dataclass of so many fields takes five times as long to make.

Holds: the values of a report.
Must not know: how they are measured, or who receives them. Only units with observers import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from asgi_sqla.engine.pools import Role

Kind: TypeAlias = Literal["request", "message", "scope", "callback"]
UnitOutcome: TypeAlias = Literal["committed", "rolled back", "failed", "in doubt", "nothing"]


class StatementReport(NamedTuple):
    """A statement, by its text.

    - ``text``: as it was sent, without its parameters, and shortened if it is long.
    - ``count``: how many times it was sent.
    - ``seconds``: how long the driver took, all times together.
    - ``line``: the line of the application that sent it most often, such as ``app/orders.py:41``; None if none was
      found.
    """

    text: str
    count: int  # type: ignore[assignment]  # it hides a method of tuples, which nobody needs
    seconds: float
    line: str | None


class EndReport(NamedTuple):
    """A COMMIT or ROLLBACK that was sent.

    - ``operation``: "COMMIT" or "ROLLBACK".
    - ``started``: when it was sent, in seconds since 1970.
    - ``seconds``: how long its answer took.
    - ``error``: the SQLSTATE of its error, or else the name of the exception; None if it did not fail.
    """

    operation: str
    started: float
    seconds: float
    error: str | None


class DatabaseReport(NamedTuple):
    """What a unit asked of one database with one of its two sessions; times are in seconds.

    - ``database``: its URL, without the password.
    - ``dialect``: SQLAlchemy's name of the dialect, such as "postgresql".
    - ``driver``: SQLAlchemy's name of the driver, such as "asyncpg".
    - ``sync``: whether it was the ``Session``; otherwise it was the ``AsyncSession``.
    - ``role``: which pool its connections were from: "write", or for a read-only unit "read" or "snapshot".
    - ``statements``: how many statements were sent, failed ones included; an ``executemany()`` counts once.
    - ``seconds``: how long the driver took for them.
    - ``rows``: how many rows they returned or changed; None if the driver did not tell for one of them.
    - ``slowest``: the slowest single execution, with a ``count`` of 1; None if nothing was sent.
    - ``repeated``: the texts that were sent more than once, the most frequent first.
    - ``waiting``: how long the unit waited for connections: for the pool, for new ones, and for what prepares one.
    - ``held``: how long a connection was held.
    - ``idle``: how much of ``held`` nothing was asked of the connection.
    - ``longest_idle``: the longest part of ``idle``, with the statement before it and the one after it; None if no
      connection was held.
    - ``ending``: how long COMMIT and ROLLBACK took, all together.
    - ``ends``: the last twenty of them, in the order in which they were sent.
    - ``new_connection``: whether the pool had to connect.
    - ``system``: what the server is: the ``dialect``, or "mariadb" where that is "mysql" and the server a MariaDB.
    """

    database: str
    dialect: str
    driver: str
    sync: bool
    role: Role
    statements: int
    seconds: float
    rows: int | None
    slowest: StatementReport | None
    repeated: tuple[StatementReport, ...]
    waiting: float
    held: float
    idle: float
    longest_idle: tuple[float, str, str] | None
    ending: float
    ends: tuple[EndReport, ...]
    new_connection: bool
    system: str


class Report(NamedTuple):
    """What one unit of work did.

    - ``name``: the name of the unit, such as "POST /orders".
    - ``kind``: what it was: "request", "message" (of a websocket), "scope" or "callback".
    - ``outcome``: what became of its last work: "committed", "rolled back", "in doubt" or "nothing"; or "failed", if it
      was to be committed and was not, or not on every database.
    - ``reason``: why it was rolled back or failed, without values of the application; None otherwise.
    - ``status``: the status of the response; None if there was none, or if it had started before the first use of a
      database.
    - ``attempt``: which attempt at its request or function it was: 1 for the first, 2 for the first retry.
    - ``started``: when the unit first asked for one of these databases, in seconds since 1970.
    - ``seconds``: how long it took from then to its end, this attempt alone.
    - ``databases``: one entry for each session, in the order of first use.
    - ``attempts``: the reports of the earlier attempts.
    """

    name: str
    kind: Kind
    outcome: UnitOutcome
    reason: str | None
    status: int | None
    attempt: int
    started: float
    seconds: float
    databases: tuple[DatabaseReport, ...]
    attempts: tuple[Report, ...]

    @property
    def statements(self) -> int:
        """How many statements were sent, by all attempts to all databases."""
        own = sum(one.statements for one in self.databases)
        return own + sum(one.statements for one in self.attempts)

    def as_dict(self) -> dict[str, Any]:
        """Return it as a dictionary that ``json.dumps()`` accepts."""
        found: dict[str, Any] = _plain(self)
        return found


def _plain(value: Any) -> Any:
    """Return a value with dictionaries for what has names."""
    if not isinstance(value, tuple):
        return value
    names = getattr(value, "_fields", None)
    values = map(_plain, value)
    return tuple(values) if names is None else dict(zip(names, values, strict=True))


Observer: TypeAlias = Callable[[Report], object]
"""A plain function that is called with the report of each unit."""
