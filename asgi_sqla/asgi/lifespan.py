"""The lifespan: databases are checked before the application starts, engines are disposed after it has stopped.

Holds: what we add to the lifespan protocol, also for an application that does not support it.
Must not know: units of work. None is open during a lifespan, because the tasks that it starts would inherit it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from asgi_sqla.asgi.kinds import OnStartup

if TYPE_CHECKING:
    from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGISendCallable


class Database(Protocol):
    """A database, as far as a lifespan needs it; the class itself is in a room above."""

    @property
    def configured(self) -> bool:
        """Whether it has been given a database."""
        ...

    async def check(self) -> None:
        """Connect, and raise what the driver raises if that fails."""

    async def async_dispose(self) -> None:
        """Close the idle connections."""


_LAST = ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed")
"""The messages after which an application sends nothing more."""

logger: logging.Logger = logging.getLogger("asgi_sqla")


class Failure(NamedTuple):
    """Why the application must not start."""

    message: str
    """What the server is told."""
    error: Exception


class Lifespan:
    """One lifespan of an application and of the engines behind it."""

    def __init__(
        self,
        databases: Sequence[Database],
        scope: Any,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
    ) -> None:
        self._databases = databases
        self._scope = scope
        self._receive = receive
        self._send = send
        self._asked = False

    async def run(self, app: ASGI3Application, check: bool, on_startup: OnStartup | None = None) -> None:
        """Pass the lifespan to ``app``; answer it ourselves if ``app`` does not support it."""
        try:
            await self._run(app, check, on_startup)
        finally:
            await self._dispose()

    async def _run(self, app: ASGI3Application, check: bool, on_startup: OnStartup | None) -> None:
        failure = await self._first_failure() if check else None
        if failure is None and on_startup is not None:
            failure = await self._failure_of(on_startup)
        if failure is not None:
            await self._receive()
            await self._dispose()
            await self._send_event("lifespan.startup.failed", message=failure.message)
            raise failure.error  # as Starlette does: its TestClient waits for that, or for ever
        try:
            await app(self._scope, self.receive, self.send)
        except Exception as exc:
            if self._asked:
                raise
            logger.debug("the application does not support lifespan: %r", exc)
        if not self._asked:
            await self._live()

    async def receive(self) -> Any:
        """Hand the event on, and record that the application listens."""
        self._asked = True
        return await self._receive()

    async def send(self, message: Any) -> None:
        """Dispose the engines after the application has shut down, and then forward its message."""
        if message["type"] in _LAST:
            await self._dispose()
        await self._send(message)

    async def _live(self) -> None:
        await self._receive()
        await self._send_event("lifespan.startup.complete")
        await self._receive()
        await self._dispose()
        await self._send_event("lifespan.shutdown.complete")

    async def _first_failure(self) -> Failure | None:
        for database in self._databases:
            try:
                await database.check()
            except Exception as exc:
                logger.error("%r cannot be used at startup", database, exc_info=exc)
                return Failure(f"{database!r} cannot be used: {type(exc).__name__}: {exc}", exc)
        return None

    async def _failure_of(self, on_startup: OnStartup) -> Failure | None:
        try:
            await on_startup()
        except Exception as exc:
            logger.error("on_startup=%r failed", on_startup, exc_info=exc)
            return Failure(f"on_startup failed: {type(exc).__name__}: {exc}", exc)
        return None

    async def _dispose(self) -> None:
        for database in self._databases:
            if database.configured:
                await database.async_dispose()

    async def _send_event(self, kind: str, **fields: Any) -> None:
        event: Any = {"type": kind, **fields}
        await self._send(event)
