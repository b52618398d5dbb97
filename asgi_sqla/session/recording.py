"""What is measured of a session: its statements, its connections, and how long it waited for what.

The listeners tell the record of a statement and of a failed end, and its session of all the rest.

Holds: the record of a session, and the event of engines that feeds it.
Must not know: units, reports, or who observes. Only a ``Database`` with observers imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from sqlalchemy.engine import Connection

from asgi_sqla.engine.classification import sqlstate_of
from asgi_sqla.session.lines import Line, Spot, line_of, spot_of_application
from asgi_sqla.session.telling import TELLING

if TYPE_CHECKING:
    from asgi_sqla.session.outcome import Outcome

LONGEST_TEXT = 1000
"""Characters of a statement that are kept."""
MOST_TEXTS = 500
"""Statements with texts of their own that are told apart; what comes later is only counted."""
MOST_UNREAD = 100
"""Statements that are kept as they were sent, until the next report or until there are more."""
NEVER_IDLE = (-1.0, "", "")
"""No connection was held yet."""
NO_ROWS = 2**63
"""A driver's unsigned -1 is above this: it does not know the number of rows."""
MOST_ENDS = 20
"""Times of COMMIT and ROLLBACK that are kept; a stream that commits each of its parts has any number of them."""
NEW = "asgi_sqla_new"
"""The key of a connection that nobody has used yet, in its ``info``."""


class Text:
    """One text of a statement: how often it was sent, how long that took, and from where."""

    __slots__ = ("count", "lines", "seconds")

    def __init__(self) -> None:
        self.count: int = 0
        self.seconds: float = 0.0
        self.lines: dict[Line | None, int] = {}

    @property
    def line(self) -> Line | None:
        """The line that sent it most often."""
        return max(self.lines, key=self.lines.__getitem__)


class Ending(NamedTuple):
    """A COMMIT or ROLLBACK that was sent: its word, when, for how long, and what it failed with."""

    word: str
    started: float
    seconds: float
    error: str | None


class Hold:
    """A connection while a session has it."""

    __slots__ = ("before", "ending", "last", "sent", "since", "word")

    def __init__(self, now: float) -> None:
        self.since: float = now
        self.last: float = now
        self.before: str = "BEGIN"
        """What was last asked of it; ``last`` is when that was answered."""
        self.ending: float | None = None
        """When its COMMIT or ROLLBACK was sent."""
        self.sent: bool = False
        """Whether anything is sent for it: not in autocommit, nor before the first statement."""
        self.word: str = ""
        """What it is; a listener may send a statement before it."""


class Record:
    """What a session did in one unit; all times are in seconds.

    While the unit runs it adds up little more than numbers. What a report says of each text is found by ``texts``,
    which few units need.
    """

    __slots__ = (
        *("_ends", "_holds", "_outcome", "_sent", "_texts", "ending", "first", "held", "idle", "longest_idle"),
        *("new_connection", "rows", "seconds", "slowest", "statements", "waiting", "waits_since"),
    )

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._holds: dict[object, Hold] = {}
        self._sent: list[tuple[str, float, Spot | None]] = []
        """What was sent, and not read yet: its text, how long it took, and from where it came."""
        self._texts: dict[str, Text] | None = None
        self._ends: tuple[tuple[str, float, float, str | None], ...] = ()
        """The values of ``Ending``, by the clock of this room."""
        self.waits_since: float | None = None
        """When the session asked for a connection that it has not got yet."""
        self.first: float | None = None
        """When it first asked for one."""
        self.slowest: tuple[float, str, Line | None] | None = None
        """The slowest of the texts that were read."""
        self.longest_idle: tuple[float, str, str] = NEVER_IDLE
        self.statements: int = 0
        self.rows: int | None = 0
        self.seconds: float = 0.0
        self.waiting: float = 0.0
        self.held: float = 0.0
        self.idle: float = 0.0
        self.ending: float = 0.0
        self.new_connection: bool = False

    def send(
        self, watched: object, context: Any, execute: Callable[..., object], cursor: Any, text: str, given: object
    ) -> None:
        """Send a statement ``text``, and what is ``given`` with it, by ``execute``; measure it."""
        self.waits_since = None
        hold = self._holds[watched]
        shown = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
        began = monotonic()
        if not self._outcome.streams:  # else a reader fetches its rows, which nothing reports
            gap = began - hold.last
            self.idle += gap
            if gap > self.longest_idle[0]:
                self.longest_idle = gap, hold.before, shown
        try:
            execute(cursor, text, given, context)
        finally:
            hold.last, hold.before = monotonic(), shown
            seconds = hold.last - began
            self.statements += 1
            self.seconds += seconds
            self._sent.append((shown, seconds, spot_of_application(shown)))
            if len(self._sent) > MOST_UNREAD:
                self._read()
        if self.rows is not None:
            rows = cursor.rowcount
            if context.execution_options.get("stream_results"):  # they are fetched later
                self.rows = None
            elif 0 <= rows < NO_ROWS:
                self.rows += rows
            elif cursor.description is not None or context.isinsert or context.isupdate or context.isdelete:
                self.rows = None

    def begun(self, watched: object, connection: Connection) -> None:
        """Record that the session has a connection."""
        now = monotonic()
        if self.waits_since is not None:
            self.waiting += now - self.waits_since
            self.waits_since = None
        self._holds[watched] = Hold(now)
        transaction: Any = connection._transaction
        telling = TELLING.get(type(transaction))
        if telling is not None:
            transaction.__class__ = telling
        if _unused and connection.info.pop(NEW, None) is not None:
            self.new_connection = True

    def left(self, now: float) -> None:
        """Record that at ``now`` a call on the session returned without a connection: it got an error instead."""
        if self.waits_since is not None and now > self.waits_since:
            self.waiting += now - self.waits_since
            self.waits_since = None

    def end(self, watched: Any, word: str) -> None:
        """Record a COMMIT or ROLLBACK that is about to be sent."""
        hold = self._holds.get(watched)
        if hold is not None and hold.ending is None:
            hold.ending = now = monotonic()
            hold.sent = watched.sent and not watched.autocommit
            self._note_idle(hold, now, word)
            hold.before = hold.word = word

    def ended(self, watched: object, error: BaseException) -> None:
        """Record that a COMMIT or ROLLBACK has failed."""
        hold = self._holds.get(watched)
        if hold is not None:
            self._ended(hold, monotonic(), sqlstate_of(error) or type(error).__name__)

    def released(self) -> None:
        """Record that the session's transaction has ended, and its connections are back."""
        now = monotonic()
        for hold in self._holds.values():
            if hold.ending is None:
                self._note_idle(hold, now, "the end of the connection")
            else:
                self._ended(hold, now, None)
            self.held += now - hold.since
        self._holds.clear()

    def held_until_now(self) -> float:
        """Return for how long connections were held, also those that a running call still has."""
        if not self._holds:
            return self.held
        now = monotonic()
        return self.held + sum(now - hold.since for hold in list(self._holds.values()))

    def ends_until_now(self) -> list[Ending]:
        """Return every COMMIT and ROLLBACK, also one that still waits for its answer."""
        now = monotonic()
        ends = self._ends
        for hold in list(self._holds.values()):
            if hold.ending is not None and hold.sent:
                ends = (*ends, (hold.word, hold.ending, now - hold.ending, "no answer"))
        clock = time() - now  # since 1970
        return [Ending(word, started + clock, seconds, error) for word, started, seconds, error in ends]

    def texts(self) -> dict[str, Text]:
        """Return what was sent, by its text, and find which was the slowest."""
        self._read()
        return self._texts or {}

    def _ended(self, hold: Hold, now: float, error: str | None) -> None:
        if hold.ending is not None:
            seconds = now - hold.ending
            self.ending += seconds
            if hold.sent:
                self._ends = (*self._ends[1 - MOST_ENDS :], (hold.word, hold.ending, seconds, error))
            hold.ending, hold.last = None, now

    def _note_idle(self, hold: Hold, now: float, after: str) -> None:
        if not self._outcome.streams:
            gap = now - hold.last
            self.idle += gap
            if gap > self.longest_idle[0]:
                self.longest_idle = gap, hold.before, after

    def _read(self) -> None:
        sent, self._sent = self._sent, []
        texts = self._texts = {} if self._texts is None else self._texts
        lines: dict[tuple[int, int], Line] = {}  # not by the code itself: that of another file may be equal
        for text, seconds, spot in sent:
            line = None
            if spot is not None:
                key = id(spot[0]), spot[1]
                line = lines.get(key) or lines.setdefault(key, line_of(spot))
            if self.slowest is None or seconds > self.slowest[0]:
                self.slowest = seconds, text, line
            found = texts.get(text)
            if found is None:
                if len(texts) >= MOST_TEXTS:
                    continue
                found = texts[text] = Text()
            found.count += 1
            found.seconds += seconds
            found.lines[line] = found.lines.get(line, 0) + 1


class New:
    """What a connection has that nobody has used yet."""

    __slots__ = ("__weakref__",)


_unused: set[ref[New]] = set()
"""That of every such connection: mostly there is none, and then nobody has to ask a connection."""


def _note_new(_connection: object, record: Any) -> None:
    record.info[NEW] = new = New()
    _unused.add(ref(new, _unused.discard))


EVENTS: tuple[tuple[str, Callable[..., object]], ...] = (("connect", _note_new),)
"""What the engines of an observed database are listened to for; the same function each time, so heard once."""
