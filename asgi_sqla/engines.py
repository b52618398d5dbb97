"""The engines of one database: a sync one, and an async one for each event loop.

Lives here: when engines are made, for whom, and when they are disposed: an async engine with its
event loop, whoever started it; every pool in a forked child; all of them when asked.
Must not know: sessions, units, ASGI.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import weakref
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import Any, Literal, TypeAlias

from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from asgi_sqla import sqlite
from asgi_sqla.errors import ConfigurationError, MissingDriverError, WrongEventLoopError
from asgi_sqla.loops import LoopEngine
from asgi_sqla.reading import keep_read_only
from asgi_sqla.replicas import Replicas
from asgi_sqla.urls import Target, shown, translate

Role: TypeAlias = Literal["write", "read", "snapshot"]
"""What an engine is for: anything; reading in autocommit; reading in a transaction, isolated as asked."""

_all: weakref.WeakSet[Engines] = weakref.WeakSet()
_parents: list[object] = []
"""What a forked child has inherited, kept: a connection that is garbage complains, or closes itself for the parent."""


class Engines:
    """Makes the engines of one database, each on first use, or holds those handed in."""

    def __init__(
        self,
        url: URL | None,
        *,
        options: Mapping[str, Any],
        engine: Engine | None = None,
        async_engine: AsyncEngine | None = None,
        transaction_mode: sqlite.TransactionMode | None = None,
        role: Role = "write",
        replicas: Sequence[URL] = (),
    ) -> None:
        self.url = url
        """Where they connect; None if every one was handed in."""
        self._given = engine
        self._given_async = async_engine
        self._role = role
        self._replicas = replicas
        self._options = {**options, **(_autocommit() if role == "read" else {})}
        self._mode: sqlite.TransactionMode = transaction_mode or "deferred"
        self._made: Engine | None = None
        self._of_loops: dict[asyncio.AbstractEventLoop, LoopEngine] = {}
        self._lock = Lock()
        if self.url is not None:
            self._check_driver(self.url)
            if self.url.get_backend_name() == "sqlite" and sqlite.is_memory(self.url):
                self.url, anchor = sqlite.shared_memory(self.url)
                weakref.finalize(self, anchor.close)
        _all.add(self)

    def __repr__(self) -> str:
        if self.url is not None:
            return shown(self.url)
        given = self._given or self._given_async
        return shown(given.url) if given is not None else "not configured"

    @property
    def in_use(self) -> bool:
        """Whether an engine has been made and not been disposed."""
        return self._made is not None or bool(self._of_loops)

    def sync(self) -> Engine:
        """Return the sync engine, made on first use."""
        if self._given is not None:
            return self._given
        if self._made is None:
            with self._lock:
                if self._made is None:  # still, now that it is our turn
                    self._made = self._make()
        return self._made

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
                f"an async engine of {self!r} was asked for where no asyncio event loop is running; "
                "there (and under trio), use the sync session and engine"
            ) from None
        of_loop = self._of_loops.get(loop)
        return of_loop.engine if of_loop is not None else self._make_async(loop)

    def has_async(self) -> bool:
        """Whether an async engine can be had: handed in, or its driver is installed."""
        if self._given_async is not None:
            return True
        try:
            self._target(asynchronous=True)
        except ConfigurationError:
            return False
        return True

    def at(self, url: URL) -> Engines:
        """Return engines with the same settings for another database."""
        return Engines(url, options=self._options, transaction_mode=self._mode)

    def dispose(self) -> None:
        """Close the idle connections of the sync engine, if it is ours; the next use makes a new one."""
        with self._lock:
            made, self._made = self._made, None
        if made is not None:
            made.dispose()

    async def dispose_async(self) -> None:
        """Dispose the engines that are ours: the sync one and the running event loop's async one."""
        self.dispose()
        try:
            of_loop = self._of_loops.get(asyncio.get_running_loop())
        except RuntimeError:  # trio, where there are only sync engines
            return
        if of_loop is not None:
            await of_loop.dispose()

    def forget(self) -> None:
        """Drop every pool without closing its connections: they are the parent process's."""
        self._lock = Lock()
        engines = [self._given, self._made]
        engines += [one.sync_engine for one in (self._given_async,) if one is not None]
        engines += [of_loop.engine.sync_engine for of_loop in self._of_loops.values()]
        for engine in filter(None, engines):
            _parents.append(engine.pool)
            engine.dispose(close=False)
        _parents.append(self._of_loops)
        self._made = None
        self._of_loops = {}

    def _check_driver(self, url: URL) -> None:
        """Raise unless one of the two kinds can be had."""
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
                f"the database {self!r} was given no URL and no {argument}=; pass it to Database as well"
            )
        return translate(self.url, asynchronous=asynchronous, installed=_installed)

    def _arguments(self, target: Target) -> dict[str, Any]:
        options = dict(self._options)
        arguments = {**target.connect_args, **options.pop("connect_args", {})}
        if target.url.get_backend_name() == "sqlite" and "timeout" not in target.url.query:
            arguments.setdefault("timeout", sqlite.BUSY_TIMEOUT)
        return {**options, "connect_args": arguments}

    def _make(self) -> Engine:
        target = self._target(asynchronous=False)
        engine = create_engine(target.url, **self._arguments(target))
        self._prepare(engine, asynchronous=False)
        return engine

    def _make_async(self, loop: asyncio.AbstractEventLoop) -> AsyncEngine:
        target = self._target(asynchronous=True)
        arguments = self._arguments(target)
        if arguments.get("poolclass") is QueuePool:
            del arguments["poolclass"]  # an async engine has a queue pool of its own kind by default
        engine = create_async_engine(target.url, **arguments)
        self._prepare(engine.sync_engine, asynchronous=True)
        self._forget_closed_loops()
        self._of_loops[loop] = LoopEngine(engine, lambda: self._of_loops.pop(loop, None))
        return engine

    def _prepare(self, engine: Engine, *, asynchronous: bool) -> None:
        if engine.dialect.name == "sqlite":
            sqlite.prepare(engine, None if self._role == "read" else self._mode)
        if self._role != "write":
            keep_read_only(engine)
        if len(self._replicas) > 1:
            targets = [translate(url, asynchronous=asynchronous, installed=_installed) for url in self._replicas]
            Replicas(targets, self._options.get("connect_args", {})).attach(engine)

    def _forget_closed_loops(self) -> None:
        """Drop the engines of loops that were closed without ``shutdown_asyncgens()``: nobody can await them."""
        for loop, of_loop in list(self._of_loops.items()):  # a copy, as other threads add theirs
            if loop.is_closed() and self._of_loops.pop(loop, None) is not None:
                of_loop.engine.sync_engine.dispose(close=False)


def _autocommit() -> dict[str, Any]:
    """Return the options of an engine that has nothing to commit or roll back."""
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None}
    if "skip_autocommit_rollback" in inspect.signature(DefaultDialect).parameters:
        options["skip_autocommit_rollback"] = True
    return options


def _installed(module: str) -> bool:
    return find_spec(module) is not None


def _forget_after_fork() -> None:
    for engines in _all:
        engines.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
