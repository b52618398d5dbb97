"""The observers that come with the package: each writes one line about a unit that deserves attention.

Holds: what deserves it, and what the line says.
Must not know: how a report is made, or when an observer is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from asgi_sqla.engine.given import checked_count
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.unit.logs import ERROR, WARNING, tell
from asgi_sqla.unit.panel import Limits, concerned
from asgi_sqla.unit.report import DatabaseReport, Report, StatementReport

LONGEST_IN_LINE = 200
"""Characters of a statement in a line of the log."""
HEADER = b'db;dur=%.1f;desc="%d statement", db-wait;dur=%.1f, db-idle;dur=%.1f, db-end;dur=%.1f'
HEADERS = HEADER.replace(b"statement", b"statements")
"""The value of ``Server-Timing``, as bytes, for one statement and for any other number of them."""


def slow_log(seconds: float) -> Callable[[Report], None]:
    """Return an observer that logs each unit that took ``seconds`` or longer, and where the time went.

    - ``seconds``: the limit, for all attempts together.

    Raises ConfigurationError unless ``seconds`` is a number of at least 0.
    """
    limit = _checked_seconds("slow_log", seconds)

    @concerned(Limits(seconds=limit))
    def observe(report: Report) -> None:
        took = report.seconds
        for earlier in report.attempts:
            took += earlier.seconds
        if took >= limit:
            attempts = f" in {report.attempt} attempts" if report.attempt > 1 else ""
            parts = "; ".join(_spent(one) for one in report.databases)
            tell(WARNING, report, "took %.3f s%s and %s; %s", took, attempts, _ended(report), parts)

    return observe


def repeated_statements(times: int = 10) -> Callable[[Report], None]:
    """Return an observer that logs each unit that sent the same statement ``times`` times or more.

    Most often that is a relationship loaded for each row of a list, "N+1". The line names the code that sent it.

    - ``times``: how often is too often; default: 10.

    Raises ConfigurationError unless ``times`` is a whole number of at least 2.
    """
    if checked_count("repeated_statements: times", times) < 2:
        raise ConfigurationError(f"repeated_statements: times={times} is no repetition; write 2 or more")

    @concerned(Limits(statements=times))
    def observe(report: Report) -> None:
        for database in report.databases:
            found = [one for one in database.repeated if one.count >= times] if database.repeated else ()
            if found:
                more = f"; others that were repeated: {len(found) - 1}" if len(found) > 1 else ""
                tell(
                    WARNING, report, "the same statement was sent %d times from %s, which took %.3f s: %s%s",
                    found[0].count, found[0].line or "an unknown line", found[0].seconds, _in_line(found[0].text), more,
                )  # fmt: skip

    return observe


def idle_in_transaction(seconds: float) -> Callable[[Report], None]:
    """Return an observer that logs each unit that held a connection for ``seconds`` and asked nothing of it.

    Nobody else can use the connection meanwhile, and its transaction may hold locks.

    - ``seconds``: the limit, for the time between two statements.

    Raises ConfigurationError unless ``seconds`` is a number of at least 0.
    """
    limit = _checked_seconds("idle_in_transaction", seconds)

    @concerned(Limits(idle=limit))
    def observe(report: Report) -> None:
        for attempt in (*report.attempts, report):
            for database in attempt.databases:
                if database.longest_idle is not None and database.longest_idle[0] >= limit:
                    idle, before, after = database.longest_idle
                    tell(
                        WARNING, report, "held a connection to %s for %.3f s in which nothing was asked of it, "
                        "between %s and %s", database.database, idle, _in_line(before), _in_line(after),
                    )  # fmt: skip

    return observe


@concerned(Limits(failures=True))
def failed_log(report: Report) -> None:
    """Log each unit whose work could not be committed, or whose COMMIT is in doubt.

    - ``report``: the report of the unit.
    """
    told = "" if report.status is None else f"; the client got {report.status}"
    if report.outcome == "failed":
        tell(WARNING, report, "its COMMIT failed, so its work is rolled back: %s%s", report.reason, told)
    elif report.outcome == "in doubt":
        tell(ERROR, report, "nobody can tell whether its COMMIT was applied: %s%s", report.reason, told)


class Timed(Protocol):
    """Numbers of one database; times are in seconds."""

    @property
    def statements(self) -> int:
        """How many statements were sent."""
        ...

    @property
    def seconds(self) -> float:
        """How long the driver took for them."""
        ...

    @property
    def waiting(self) -> float:
        """How long the unit waited for connections."""
        ...

    @property
    def idle(self) -> float:
        """How long a connection was held while nothing was asked of it."""
        ...

    @property
    def ending(self) -> float:
        """How long COMMIT and ROLLBACK took."""
        ...


class ServerTiming:
    """An observer that adds the header ``Server-Timing`` to responses, which browsers show with a request."""

    def __call__(self, report: Report) -> None:
        """Do nothing at the end.

        - ``report``: the report of the unit.
        """

    def headers(self, report: Report) -> list[tuple[bytes, bytes]]:
        """Return the header, in milliseconds for all databases together: numbers only.

        - ``report``: the report of the unit, before its response starts.
        """
        return self.timed(report.databases)

    def timed(self, databases: Iterable[Timed]) -> list[tuple[bytes, bytes]]:
        """Return the header for these numbers.

        - ``databases``: what was measured of each database, in a report or before there is one.
        """
        seconds = waiting = idle = ending = 0.0
        count = 0
        for one in databases:
            count += one.statements
            seconds += one.seconds
            waiting += one.waiting
            idle += one.idle
            ending += one.ending
        form = HEADER if count == 1 else HEADERS
        return [(b"server-timing", form % (seconds * 1000, count, waiting * 1000, idle * 1000, ending * 1000))]


server_timing: ServerTiming = concerned(Limits())(ServerTiming())
"""Adds the header ``Server-Timing`` to each response of a request that used the database before the start."""


def _checked_seconds(name: str, given: Any) -> float:
    if not isinstance(given, int | float) or isinstance(given, bool) or not given >= 0:
        raise ConfigurationError(
            f"{name}: seconds={hidden(given)} is not a number of seconds; write one of at least 0, such as {name}(1.0)"
        )
    return float(given)


def _ended(report: Report) -> str:
    words = {"failed": "failed", "in doubt": "is in doubt", "nothing": "did nothing", "committed": "was committed"}
    reason = "" if report.reason is None else f" ({report.reason})"
    return f"{words.get(report.outcome, 'was rolled back')}{reason}"


def _spent(one: DatabaseReport) -> str:
    slowest = "" if one.slowest is None else f", {_slowest(one.slowest)}"
    return (
        f"{one.database}: {one.statements} statements in {one.seconds:.3f} s, waited {one.waiting:.3f} s for a "
        f"connection and held one for {one.held:.3f} s, {one.idle:.3f} s of it idle{slowest}"
    )


def _slowest(one: StatementReport) -> str:
    line = "" if one.line is None else f" from {one.line}"
    return f"the slowest took {one.seconds:.3f} s{line}: {_in_line(one.text)}"


def _in_line(text: str) -> str:
    """Return a statement on one short line."""
    line = " ".join(_words(text))
    return line if len(line) <= LONGEST_IN_LINE else f"{line[:LONGEST_IN_LINE]}..."


def _words(text: str) -> Iterator[str]:
    return (word if word.isprintable() else ascii(word) for word in text.split())
