"""Draws a program from a seed: what an application does in one request or scope, and what disturbs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

STATUSES = (200, 200, 201, 201, 204, 302, 303, 304, 400, 404, 409, 422, 500, 503)
WRITES = ("add", "add and flush", "core", "core", "text", "on the connection", "on the driver's connection")
FAILURES = ("core", "missing table", "flush", "on the driver's connection", "pending")
ENDS = (
    ("commit", "commit", "rollback", "rollback", "close", "reset", "invalidate", "expunge_all")
    + ("textual COMMIT", "textual ROLLBACK", "commit on the connection", "rollback on the connection")
    + ("COMMIT on the driver's connection", "ROLLBACK on the driver's connection")
)
SAVEPOINTS = (
    "begin",
    "begin",
    "release",
    "release",
    "roll back",
    "core kept",
    "core undone",
    "text kept",
    "text undone",
)
UNGUARDED = frozenset(
    ("on the driver's connection", "commit on the connection", "rollback on the connection")
    + ("COMMIT on the driver's connection", "ROLLBACK on the driver's connection")
)
"""Actions outside the session and its guard."""
CAUGHT = ("", "", "caught", "caught", "rolled back")
"""What the application does about an exception of a step: nothing, go on, or roll back and go on."""


@dataclass(frozen=True)
class Step:
    """One action of the application."""

    number: int
    kind: str
    how: str = ""
    caught: str = ""
    value: float = 0
    flag: bool = False
    inner: tuple[Step, ...] = ()

    def lines(self, depth: int = 1) -> list[str]:
        """Return it as text, one line for each step."""
        parts = [self.kind, self.how, self.value and f"{self.value:g}", self.flag and "flag", self.caught]
        own = "  " * depth + f"{self.number}: " + ", ".join(str(part) for part in parts if part)
        return [own, *(line for step in self.inner for line in step.lines(depth + 1))]


@dataclass(frozen=True)
class Cancellation:
    """When the program is cancelled: a number of turns of the loop, or of seconds, after a step began."""

    step: int
    how: str
    turns: int
    seconds: float
    times: int


@dataclass(frozen=True)
class Program:
    """The actions of one request or one scope, and what disturbs them."""

    seed: int
    place: str
    """Where it is done: "request", "scope", or "function", which is a decorated one."""
    kind: str
    steps: tuple[Step, ...] = ()
    retries: int = 0
    mapped: bool = False
    """Whether the middleware has ``error_responses``."""
    abandons: bool = False
    """Whether a cancelled task leaves its worker thread behind, as asyncio does and anyio does not."""
    on_error: int = 0
    """The status that the application makes of an exception; 0 lets it through."""
    cancellation: Cancellation | None = None

    def __str__(self) -> str:
        head = (
            f"ASGI_SQLA_FUZZ_SEED={self.seed}: {self.kind} {self.place}, retries={self.retries}, mapped={self.mapped}, "
            f"abandons={self.abandons}, on_error={self.on_error}, {self.cancellation}"
        )
        return "\n".join([head, *(line for step in self.steps for line in step.lines())])


class Drawer:
    """Draws steps, and numbers them."""

    def __init__(self, random: Random, *, postgresql: bool, sync_scope: bool, cancelled: bool, threads: int) -> None:
        self.random = random
        self.postgresql = postgresql
        self.sync_scope = sync_scope
        self.cancelled = cancelled
        """Whether anything of the program may be cancelled."""
        self.threads = threads
        """How many worker threads are around what is drawn now."""
        self.number = 0

    def steps(self, most: int, depth: int = 0) -> tuple[Step, ...]:
        """Draw at least one step, and at most this number."""
        return tuple(self.step(depth) for _ in range(self.random.randint(1, most)))

    def step(self, depth: int) -> Step:
        """Draw one step."""
        self.number += 1
        number, draw = self.number, self.random
        kinds: dict[Callable[[int, int], Step], float] = {
            self._write: 40,
            self._failure: 10,
            self._savepoint: 14,
            self._end: 11,
            self._callback: 8,
            self._trouble: 7,
        }
        if depth < 2:
            kinds |= {self._block: 4, self._scope: 9}
            if not self.sync_scope:
                kinds[self._thread] = 5
            if self.cancelled:
                kinds[self._timeout] = 9
        (chosen,) = draw.choices(list(kinds), list(kinds.values()))
        return chosen(number, depth)

    def flow(self, kind: str, value: float = 0, caught: str = "") -> Step:
        """Return a step that is drawn elsewhere."""
        self.number += 1
        return Step(self.number, kind, value=value, caught=caught)

    def _how(self, hows: tuple[str, ...]) -> str:
        """Choose one; only a way that our guard sees, if a cancellation may leave a thread behind.

        A thread that is left behind and works with the driver's connection, or ends SQLAlchemy's, races the end of the
        unit. The result of that is not checked.
        """
        return self.random.choice([how for how in hows if not self._may_be_left or how not in UNGUARDED])

    @property
    def _may_be_left(self) -> bool:
        """Return whether the step may run in a thread whose task was cancelled."""
        return self.cancelled and self.threads > 0

    def _caught(self) -> str:
        return self.random.choice(CAUGHT)

    def _write(self, number: int, _depth: int) -> Step:
        orphan = self.random.random() < 0.07
        return Step(number, "write", self._how(WRITES), self._caught(), flag=orphan)

    def _failure(self, number: int, _depth: int) -> Step:
        hows = (*FAILURES, "division" if self.postgresql else "OR ROLLBACK")
        flag = self.random.random() < 0.3 and not self._may_be_left
        return Step(number, "fail", self._how(hows), self._caught(), flag=flag)

    def _savepoint(self, number: int, _depth: int) -> Step:
        return Step(number, "savepoint", self._how(SAVEPOINTS), self._caught())

    def _end(self, number: int, _depth: int) -> Step:
        return Step(number, "end", self._how(ENDS), self._caught())

    def _callback(self, number: int, _depth: int) -> Step:
        if self.random.random() < 0.1:
            return Step(number, "rollback_only")
        how = self.random.choice(("commit", "commit", "rollback"))
        kind = self.random.choice(("writes", "writes", "fails", "nothing"))
        return Step(number, "callback", f"{how} {kind}", flag=self.random.random() < 0.5)

    def _trouble(self, number: int, _depth: int) -> Step:
        hows = ["transient", "transient", "read"]
        if self.postgresql:
            hows += ["lost", "lost at COMMIT"]
        return Step(number, "trouble", self.random.choice(hows), self._caught(), value=self.random.randint(1, 3))

    def _block(self, number: int, depth: int) -> Step:
        return Step(
            number, "block", "", self._caught(), flag=self.random.random() < 0.4, inner=self.steps(2, depth + 1)
        )

    def _scope(self, number: int, depth: int) -> Step:
        sync = self.sync_scope or self.random.random() < 0.4
        before, self.threads = self.threads, self.threads + 1 if sync else self.threads
        how = self._how(("new", "new", "join", "nested")) + (" sync" if sync else " async")
        inner = self.steps(3, depth + 1)
        self.threads = before
        return Step(number, "scope", how, self._caught(), flag=self.random.random() < 0.35, inner=inner)

    def _thread(self, number: int, depth: int) -> Step:
        self.threads += 1
        inner = self.steps(2, depth + 1)
        self.threads -= 1
        return Step(number, "thread", "", self._caught(), inner=inner)

    def _timeout(self, number: int, depth: int) -> Step:
        how = self.random.choice(("asyncio", "anyio fails", "anyio moves on"))
        seconds = round(self.random.choice((0, 0.0005, 0.002, 0.005)) * self.random.random(), 5)
        return Step(number, "timeout", how, self._caught(), value=seconds, inner=self.steps(2, depth + 1))


def draw(backend: str, kind: str, seed: int) -> Program:
    """Draw the program of ``seed`` for a backend and a kind of session."""
    random = Random(f"{backend} {kind} {seed}")
    place = random.choice(("request", "request", "request", "scope", "function"))
    sync_scope = kind == "sync" and place != "request"
    cancelled = not sync_scope and random.random() < 0.6
    threads = 1 if kind == "sync" and place == "request" else 0
    drawer = Drawer(random, postgresql=backend != "sqlite", sync_scope=sync_scope, cancelled=cancelled, threads=threads)
    steps = list(drawer.steps(7))
    if place == "request":
        _answer(drawer, steps)
    elif random.random() < 0.1:
        steps.append(drawer.flow("raise"))
    return Program(
        seed,
        place,
        kind,
        tuple(steps),
        retries=random.choice((0, 1, 2)) if place != "scope" else 0,
        mapped=random.random() < 0.3,
        abandons=random.random() < 0.3,
        on_error=random.choice((0, 0, 200, 500)),
        cancellation=_cancellation(random, len(steps)) if cancelled and random.random() < 0.6 else None,
    )


def _answer(drawer: Drawer, steps: list[Step]) -> None:
    """Add a response, and what may follow its start; or another end."""
    random = drawer.random
    end = random.random()
    if end < 0.08:
        steps.append(drawer.flow("raise"))
    elif end < 0.14:
        steps.append(drawer.flow("return"))
    else:
        caught = random.choice(("", "", "", "caught", "swallowed"))
        steps.append(drawer.flow("start", random.choice(STATUSES), caught))
        # Who swallows what unwinds an application, and goes on in units of its own, does that on its own account.
        if caught != "swallowed" and random.random() < 0.3:
            steps += drawer.steps(3)
            steps.append(drawer.flow(random.choice(("body", "body", "body", "raise", "return"))))
        else:
            steps.append(drawer.flow("body"))
            if caught != "swallowed" and random.random() < 0.1:
                steps += drawer.steps(2)


def _cancellation(random: Random, steps: int) -> Cancellation:
    by_turns = random.random() < 0.5
    return Cancellation(
        step=random.randrange(steps) if random.random() < 0.5 else max(0, steps - random.randint(1, 3)),
        how=random.choice(("task", "anyio")),
        turns=random.randint(0, 12) if by_turns else 0,
        seconds=0 if by_turns else round(random.random() * random.choice((0.001, 0.004)), 5),
        times=random.choice((1, 1, 2)),
    )
