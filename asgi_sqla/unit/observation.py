"""What is known of an observed unit of work while it runs, and the report that its observers get at its end.

A unit has one from its first session of an observed ``Database`` on; units without such a session never import this
room. Its end is judged by the outcome of its sessions, as every other decision is.

Holds: the facts of one unit that no session has, how a report is made of both, and how observers are called.
Must not know: how a session is measured, or what an observer does.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from time import monotonic, time
from typing import Any, NoReturn

from asgi_sqla.engine.callables import drop_awaitable
from asgi_sqla.engine.classification import classify
from asgi_sqla.session.outcome import Outcome
from asgi_sqla.unit.logs import WARNING, outcome_of, tell
from asgi_sqla.unit.measured import records_of, report_of
from asgi_sqla.unit.panel import Limits, Panel, panel_of
from asgi_sqla.unit.report import Report, UnitOutcome

_calling: ContextVar[bool] = ContextVar("asgi_sqla_observing", default=False)
"""Whether an observer runs: its own units are not reported, or one that writes to the database would never end."""


class Observation:
    """The facts of one unit; ``earlier`` are the reports of the attempts before it."""

    __slots__ = ("_began", "_cause", "_commit", "_earlier", "_failure", "_panel", "_report", "_status")

    def __init__(self, panel: Panel, earlier: tuple[Report, ...] = ()) -> None:
        self._panel = panel
        self._earlier = earlier
        self._began = monotonic()
        self._status: int | None = None
        self._commit: bool | None = None
        """The last verdict on any work; None if there was no work."""
        self._cause: BaseException | None = None
        self._failure: BaseException | None = None
        """Why a commit failed."""
        self._report: Report | None = None

    def add(self, panel: Panel) -> None:
        """Add the observers of another database."""
        self._panel = self._panel.joined(panel)

    def attach(self, unit: Any) -> None:
        """Belong to ``unit`` from now on, and hear the start of its response."""
        unit._observation = self
        send = getattr(unit, "_send", None)
        if send is not None:

            def forward(message: Any) -> Any:  # each message passes, and a partial() takes twice as long
                return send(self._at_start(unit, message) if message["type"] == "http.response.start" else message)

            unit._send = forward

    def note_end(self, commit: bool, cause: BaseException | None, failure: BaseException | None) -> None:
        """Record how the work of the unit ended, for the first time or once more."""
        self._commit = commit
        self._cause = self._cause or cause
        if commit:
            self._failure = self._failure or failure

    def _at_start(self, unit: Any, message: Any) -> Any:
        """Record the status of a response, and add the headers of the observers to its start."""
        self._status = message.get("status")
        headers: list[Any] = []
        report: Report | None = None
        for one, timed in self._panel.heads:
            if timed:
                headers += one.timed(records_of(unit))
            else:
                report = report or self._made(unit, self._earlier)
                headers += _called((one.headers,), report, report) or ()
        return {**message, "headers": [*message.get("headers", ()), *headers]} if headers else message

    def end(self, unit: Any, *, retried: bool = False) -> None:
        """Give the report to every observer, once; if the unit is ``retried``, keep it for the next attempt."""
        if self._report is not None or not (unit._used or self._earlier):
            return
        if retried:
            self._report = self._made(unit, ())
        else:
            unit._observation = None
            if self._earlier or self._panel.limits is None or self._concerns(unit, self._panel.limits):
                self._report = report = self._made(unit, self._earlier)
                _called(self._panel.observers, report, report)
        self._cause = self._failure = None  # their tracebacks would keep the frames of the application alive

    def _concerns(self, unit: Any, limits: Limits) -> bool:
        """Return whether the unit reached one of the limits, as far as that is known without a report."""
        began = self._began
        if limits.failures and self._failure is not None:
            return True
        for one in unit._sessions.all:
            if limits.failures and one.session.guard_outcome.in_doubt:
                return True
            record = one.session.guard_record
            if record is not None:
                if record.statements >= limits.statements or record.longest_idle[0] >= limits.idle:
                    return True
                if record.first is not None and record.first < began:  # between the messages of a websocket
                    began = record.first
        return monotonic() - began >= limits.seconds

    def following(self) -> Observation:
        """Return that of the next attempt, which begins now."""
        own = () if self._report is None else (self._report,)
        return Observation(self._panel, (*self._earlier, *own))

    def _made(self, unit: Any, attempts: tuple[Report, ...]) -> Report:
        sessions = [one.session for one in unit._sessions.all]
        outcomes = [one.guard_outcome for one in sessions]
        before = 0.0
        if unit._kind == "message":  # it had the sessions of the last one before it came
            first = [one.guard_record.first for one in sessions if one.guard_record is not None]
            before = min((one - self._began for one in first if one is not None), default=0.0)
        took = monotonic() - self._began - before
        outcome = outcome_of(outcomes, failed=self._failure is not None, commit=self._commit)
        return Report(
            name=unit.name,
            kind=unit._kind,
            outcome=outcome,
            reason=self._reason(unit, outcome, outcomes),
            status=self._status,
            attempt=unit.attempt,
            started=time() - took,
            seconds=took,
            databases=tuple([report_of(one) for one in sessions if one.guard_record is not None]),
            attempts=attempts,
        )

    def _reason(self, unit: Any, outcome: UnitOutcome, outcomes: list[Outcome]) -> str | None:
        """Return why the work was not committed: the names of exceptions, but nothing of what they say."""
        if outcome in ("committed", "nothing"):
            return None
        if outcome == "failed":
            return _named(self._failure)
        if outcome == "in doubt":
            errors = [one.error for one in outcomes if one.error is not None]
            return _named(self._failure or self._cause or next(iter(errors), None)) or "no answer to COMMIT"
        if self._cause is not None:
            return _named(self._cause)
        if unit._rollback_only:
            return "rollback_only()"
        if self._commit is None or self._commit:
            return "the application rolled back"
        after = "".join(f" after {_named(one.error)}" for one in outcomes if one.error is not None and one.unhandled)
        return "no response" if self._status is None and unit._kind == "request" else f"answered {self._status}{after}"


def observe(unit: Any, database: Any) -> None:
    """Record that ``unit`` has got a session of ``database``, which has observers."""
    if not _calling.get():
        panel, observation = panel_of(database), unit._observation
        if observation is None:
            Observation(panel).attach(unit)
        elif observation._panel is not panel:
            observation.add(panel)


def _named(failure: BaseException | None) -> str | None:
    """Return the class of an error, and its kind if the database raised it; its text may hold values."""
    if failure is None:
        return None
    kind = classify(failure)
    return type(failure).__name__ + ("" if kind is None else f" ({kind.value})")


def _called(observers: Iterable[Any], seen: object, about: Any) -> Any:
    """Call each with what it sees, and return what the last one did; the response goes on.

    What one raises is logged, ``about`` a unit or a report.
    """
    result = None
    token = _calling.set(True)
    try:
        for one in observers:
            try:
                result = one(seen)
                if result is not None and drop_awaitable(result):
                    _refuse()
            except Exception as exc:
                result = None
                tell(WARNING, about, "the observer %r failed", one, exc_info=exc)
    finally:
        _calling.reset(token)
    return result


def _refuse() -> NoReturn:
    raise TypeError("it returned an awaitable, and nothing awaits it; write a plain function")
