"""The engines of one database: a sync one, and an async one for each event loop.

Holds: when engines are made, for whom, and when they are disposed. An async engine ends with its event loop; every pool
in a forked child; all of them on request, or when the database is garbage.
Must not know: sessions, units, ASGI.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import Any, TypeAlias

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine

from asgi_sqla.engine import cancelling, pipelining, sqlite
from asgi_sqla.engine.arguments import Recipe, arguments_for
from asgi_sqla.engine.loops import LoopEngine
from asgi_sqla.engine.options import TransactionMode
from asgi_sqla.engine.poolers import name_the_switch
from asgi_sqla.engine.pools import PoolStatus, Role, status_of
from asgi_sqla.engine.read_only import keep_read_only
from asgi_sqla.engine.replicas import Replicas
from asgi_sqla.engine.showing import shown
from asgi_sqla.engine.urls import Target, translate
from asgi_sqla.errors import ConfigurationError, MissingDriverError, WrongEventLoopError

Listener: TypeAlias = tuple[str, Callable[..., object]]
"""The name of an engine event, and the function to call."""

_all: weakref.WeakSet[Engines] = weakref.WeakSet()
_parents: list[object] = []
"""What a forked child inherited, kept alive: garbage connections would complain, or close for the parent."""


class Engines:
    """Makes the engines of one database, each on first use, or holds those passed in."""

    def __init__(
        self,
        url: URL | None,
        recipe: Recipe,
        *,
        engine: Engine | None = None,
        async_engine: AsyncEngine | None = None,
        transaction_mode: TransactionMode | None = None,
        role: Role = "write",
        replicas: Sequence[URL] = (),
        listeners: list[Listener] | None = None,
        watchers: Sequence[Listener] = (),
    ) -> None:
        self.url = url
        """Where they connect; None if every engine was passed in."""
        self._given = engine
        self._given_async = async_engine
        self._role: Role = role
        self._replicas = replicas
        self._recipe = recipe
        self._mode: TransactionMode = transaction_mode or "deferred"
        self._listeners = [] if listeners is None else listeners
        self._watchers: list[Listener] = []
        self._made: list[Engine] = []
        self.of_loops: dict[asyncio.AbstractEventLoop | None, LoopEngine] = {}
        """The async engines, by their event loops."""
        weakref.finalize(self, _abandon, self._made, self.of_loops).atexit = False
        self._lock = Lock()
        if self.url is not None:
            self._check_driver(self.url)
            if self.url.get_backend_name() == "sqlite" and sqlite.is_memory(self.url):
                self.url, anchor = sqlite.shared_memory(self.url)
                weakref.finalize(self, anchor.close)
        for watcher in watchers:
            self.watch(*watcher)
        _all.add(self)

    def __repr__(self) -> str:
        if self.url is not None:
            return shown(self.url)
        given = self._given or self._given_async
        return shown(given.url) if given is not None else "not configured"

    @property
    def in_use(self) -> bool:
        """Whether an engine has been made and not disposed."""
        return bool(self._made or self.of_loops)

    def sync(self) -> Engine:
        """Return the sync engine, made on first use."""
        if self._given is not None:
            return self._given
        if not self._made:
            with self._lock:
                if not self._made:  # checked again, under the lock
                    self._made.append(self._make())
        return self._made[0]

    def asynchronous(self) -> AsyncEngine:
        """Return the async engine of the running event loop, made on first use there.

        Raises WrongEventLoopError where no asyncio event loop is running.
        """
        if self._given_async is not None:
            return self._given_async
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongEventLoopError(
                f"an async engine of {self!r} was requested where no asyncio event loop is running; "
                "use the sync session and engine there (and under trio)"
            ) from None
        of_loop = self.of_loops.get(loop)
        return of_loop.engine if of_loop is not None else self._make_async(loop)

    def has_async(self) -> bool:
        """Return whether there can be an async engine: one was passed in, or its driver is installed."""
        if self._given_async is not None:
            return True
        try:
            self._target(asynchronous=True)
        except ConfigurationError:
            return False
        return True

    def at(self, url: URL) -> Engines:
        """Return engines with the same settings for another database."""
        mode, listeners, watchers = self._mode, self._listeners, self._watchers
        return Engines(url, self._recipe, transaction_mode=mode, listeners=listeners, watchers=watchers)

    def listen(self, identifier: str, function: Callable[..., object]) -> None:
        """Listen on every existing engine; engines made later get the listener when they are made."""
        for engine in self.existing():
            event.listen(engine, identifier, function)

    def watch(self, identifier: str, function: Callable[..., object]) -> None:
        """Listen as ``listen`` does, but only on these engines."""
        self._watchers.append((identifier, function))
        self.listen(identifier, function)

    def existing(self) -> list[Engine]:
        """Return the sync core of every existing engine."""
        async_engines = [self._given_async, *[of_loop.engine for of_loop in list(self.of_loops.values())]]
        engines = [self._given, *self._made, *[one.sync_engine for one in async_engines if one is not None]]
        return [one for one in engines if one is not None]

    def pools(self) -> list[PoolStatus]:
        """Return the numbers of the pool of every existing engine."""
        found = [status_of(engine, self._role) for engine in self.existing()]
        return [status for status in found if status is not None]

    def dispose(self) -> None:
        """Close the idle connections of the sync engine, if we made it; the next use makes a new one."""
        with self._lock:
            made = self._made.pop() if self._made else None
        if made is not None:
            made.dispose()

    async def dispose_async(self) -> None:
        """Dispose the engines that we made: the sync one, and the running event loop's async one."""
        self.dispose()
        try:
            of_loop = self.of_loops.get(asyncio.get_running_loop())
        except RuntimeError:  # under trio there are only sync engines
            return
        if of_loop is not None:
            await of_loop.dispose()

    def forget(self) -> None:
        """Drop every pool without closing its connections, which belong to the parent process."""
        self._lock = Lock()
        for engine in self.existing():
            _parents.append(engine.pool)
            engine.dispose(close=False)
        _parents.append(dict(self.of_loops))
        self._made.clear()
        self.of_loops.clear()

    def _check_driver(self, url: URL) -> None:
        """Raise unless at least one of the two kinds has a driver."""
        try:
            translate(url, asynchronous=False, installed=_installed)
        except ConfigurationError as exc:
            try:
                translate(url, asynchronous=True, installed=_installed)
            except MissingDriverError:
                raise exc from None

    def _target(self, *, asynchronous: bool) -> Target:
        if self.url is None:
            argument = "async_engine" if asynchronous else "engine"
            raise ConfigurationError(
                f"the database {self!r} has neither a URL nor {argument}=; pass one of them to Database as well"
            )
        return translate(self.url, asynchronous=asynchronous, installed=_installed)

    def _make(self) -> Engine:
        target = self._target(asynchronous=False)
        arguments = self._arguments(target, asynchronous=False)
        # Looked up at each call, because instrumentation may replace it after this module was imported.
        engine = sqlalchemy.create_engine(target.url, **arguments)
        self._prepare(engine, arguments, asynchronous=False)
        return engine

    def _make_async(self, loop: asyncio.AbstractEventLoop) -> AsyncEngine:
        target = self._target(asynchronous=True)
        arguments = self._arguments(target, asynchronous=True)
        engine = sqlalchemy_asyncio.create_async_engine(target.url, **arguments)
        self._prepare(engine.sync_engine, arguments, asynchronous=True)
        self._forget_closed_loops()
        of_loops = self.of_loops
        of_loops[loop] = LoopEngine(engine, lambda: of_loops.pop(loop, None))
        return engine

    def _arguments(self, target: Target, *, asynchronous: bool) -> dict[str, Any]:
        return arguments_for(target, self._recipe, self._role, asynchronous=asynchronous)

    def _prepare(self, engine: Engine, arguments: Mapping[str, Any], *, asynchronous: bool) -> None:
        if engine.dialect.name == "sqlite":
            sqlite.prepare(engine, None if self._role == "read" else self._mode)
        if engine.dialect.name in ("postgresql", "sqlite") and self._recipe.pipelining:
            pipelining.prepare(engine)
        if engine.dialect.driver in ("psycopg", "psycopg_async"):
            cancelling.prepare(engine)
        if engine.dialect.name == "postgresql" and not self._recipe.pooler:
            name_the_switch(engine)
        if self._role != "write":
            keep_read_only(engine, arguments["connect_args"], pooler=self._recipe.pooler)
        if len(self._replicas) > 1:
            targets = [translate(url, asynchronous=asynchronous, installed=_installed) for url in self._replicas]
            full = [Target(one.url, self._arguments(one, asynchronous=asynchronous)["connect_args"]) for one in targets]
            Replicas(full).attach(engine)
        for identifier, function in (*self._listeners, *self._watchers):
            event.listen(engine, identifier, function)

    def _forget_closed_loops(self) -> None:
        """Drop the engines of loops closed without ``shutdown_asyncgens()``: nothing can await them."""
        for loop, of_loop in list(self.of_loops.items()):  # a copy, because other threads add theirs
            if loop is not None and loop.is_closed() and self.of_loops.pop(loop, None) is not None:
                of_loop.engine.sync_engine.dispose(close=False)


def _abandon(made: list[Engine], of_loops: dict[asyncio.AbstractEventLoop | None, LoopEngine]) -> None:
    """Close the idle connections of engines that are garbage, each in its own thread or loop."""
    for engine in made:
        engine.dispose()
    for of_loop in list(of_loops.values()):
        of_loop.abandon()


def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _forget_after_fork() -> None:
    for engines in _all:
        engines.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
