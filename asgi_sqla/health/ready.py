"""Readiness: an ASGI application that says whether requests can be served, by asking the databases.

Holds: its arguments, which answers mean ready, and for how long one is good.
Must not know: how a server is asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from asgi_sqla.database import Database
from asgi_sqla.engine.kinds import SECONDS, Kind, check_kinds
from asgi_sqla.engine.pools import PoolStatus
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.health.server import Answer, Read, Server
from asgi_sqla.middleware import Application
from asgi_sqla.migrations.manager import Migrations
from asgi_sqla.migrations.state import Status
from asgi_sqla.session.guard import running_loop

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

READY = frozenset((Status.UP_TO_DATE, Status.UNKNOWN_REVISION))
"""The states of the migrations with which requests are served. An unknown revision is that of a newer version of the
application: during a deployment it migrates first, and the older processes must serve until it does."""
_SECONDS = Kind(
    lambda value: SECONDS.fits(value) and value > 0, "is not a number above 0; write the seconds to wait for an answer"
)


def ready(
    database: Database,
    *more_databases: Database,
    migrations: Migrations | None = None,
    cache: float = 5.0,
    timeout: float = 2.0,
) -> Application:
    """Return an ASGI application that answers 200 if every database answers, and 503 otherwise.

    It is for readiness, never for liveness: no restart of the application brings back a database. It answers GET and
    HEAD at any path, with JSON that holds no URL, no user and no message of an error. A full pool is ready, and a
    replica that does not answer is not. It takes no lock, and one question at a time is asked, whose answer all get.

    - ``database``: the ``Database`` to ask; its replicas are asked too.
    - ``*more_databases``: others to ask.
    - ``migrations``: the ``Migrations`` of one of them. A database that lacks revisions is not ready, one with newer
      revisions is; default: none.
    - ``cache``: seconds for which an answer is good; default: 5.
    - ``timeout``: seconds to wait for the databases; default: 2.

    Raises ConfigurationError for a wrong argument.
    """
    databases = (database, *more_databases)
    for one in databases:
        if not isinstance(one, Database):
            raise ConfigurationError(f"ready: {hidden(one)} is not a Database; write ready(Database(url))")
    if not isinstance(migrations, Migrations | None):
        raise ConfigurationError(
            f"ready: migrations={hidden(migrations)} is not a Migrations; write migrations=Migrations(db, location)"
        )
    if migrations is not None and migrations.database not in databases:
        raise ConfigurationError(
            f"ready: migrations={migrations!r} is of another Database; write ready(migrations.database, ...)"
        )
    check_kinds("ready", {"cache": cache, "timeout": timeout}, {"cache": SECONDS, "timeout": _SECONDS})
    return Ready(databases, migrations, cache, timeout)


class _Report(NamedTuple):
    """An answer, and when it was made."""

    status: int
    body: bytes
    made: float


class Ready:
    """The application that ``ready`` returns."""

    def __init__(
        self, databases: Sequence[Database], migrations: Migrations | None, cache: float, timeout: float
    ) -> None:
        self._databases = databases
        self._cache = cache
        self._timeout = timeout
        self._servers: list[Server] = []
        for database in databases:
            read = _once(migrations._reader) if migrations is not None and migrations.database is database else None
            self._servers += Server(database, "primary", read), Server(database, "replicas")
        self._report: _Report | None = None
        self._asking: dict[asyncio.AbstractEventLoop, asyncio.Task[_Report]] = {}
        self._lock: anyio.Lock | None = None

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request; close a websocket; dispose the engines at the end of a lifespan of its own."""
        send_: Any = send
        if scope["type"] == "lifespan":
            await self._live(receive, send_)
        elif scope["type"] == "websocket":
            await receive()
            await send_({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            if scope["method"] not in ("GET", "HEAD"):
                await _respond(send_, 405, b"", (b"allow", b"GET, HEAD"), body=True)
                return
            report = await self._current()
            kind = (b"content-type", b"application/json")
            await _respond(send_, report.status, report.body, kind, body=scope["method"] == "GET")

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for database in self._databases:
            if database.configured:
                await database.async_dispose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _current(self) -> _Report:
        """Return the last answer if it is good, or that to the question that is being asked now."""
        if self._report is not None and monotonic() < self._report.made + self._cache:
            return self._report
        loop = running_loop()
        if loop is None:  # trio, where a task needs somebody who waits for it
            return await self._in_turn()
        asking = self._asking.get(loop)
        if asking is None:
            # A task of its own, that no client ends by hanging up, and outside any unit of work.
            asking = self._asking[loop] = loop.create_task(self._ask(), context=Context())
            asking.add_done_callback(lambda _task: self._asking.pop(loop, None))
        await asyncio.wait([asking])
        return asking.result()

    async def _in_turn(self) -> _Report:
        came = monotonic()
        self._lock = lock = self._lock or anyio.Lock()
        async with lock:
            if self._report is not None and self._report.made >= came:
                return self._report
            return await self._ask()

    async def _ask(self) -> _Report:
        """Ask every server at once."""
        answers: dict[Server, Answer] = {}

        async def ask(server: Server) -> None:
            answers[server] = await server.ask(self._timeout)

        async with anyio.create_task_group() as group:
            for server in self._servers:
                if server.exists:
                    group.start_soon(ask, server)
        good = all(_is_good(answer) for answer in answers.values())
        said = {"ready": good, "databases": [self._described(one, answers) for one in self._databases]}
        self._report = _Report(200 if good else 503, json.dumps(said).encode(), monotonic())
        return self._report

    def _described(self, database: Database, answers: dict[Server, Answer]) -> dict[str, Any]:
        pools = database.pools() if database.configured else []
        said: dict[str, Any] = {"kind": getattr(database._dialect(), "name", None)}
        for server, answer in answers.items():
            if server.database is database:
                said[server.which] = {"reachable": answer.error is None, "milliseconds": answer.milliseconds}
                said[server.which].update({} if answer.error is None else {"error": answer.error})
                said.update({} if answer.revision is None else {"revision": answer.revision.value})
        return {**said, "pools": [_numbers(one) for one in pools]}


def _numbers(status: PoolStatus) -> dict[str, Any]:
    """Return what is said of a pool: all but its URL."""
    return {name: value for name, value in status._asdict().items() if name != "database"}


def _is_good(answer: Answer) -> bool:
    return answer.error is None and (answer.revision is None or answer.revision in READY)


def _once(make: Callable[[], Read]) -> Callable[[], Read]:
    made: list[Read] = []

    def once() -> Read:
        if not made:
            made.append(make())
        return made[0]

    return once


async def _respond(send: Any, status: int, content: bytes, header: tuple[bytes, bytes], *, body: bool) -> None:
    headers = [header, (b"content-length", b"%d" % len(content)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content if body else b""})
