"""The engines for reading of one database: from its replicas, from its primary, or from whichever is far enough.

Holds: which of them a unit gets, and the key of the database in marks.
Must not know: units, marks, or where a position comes from.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias, cast

from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from asgi_sqla.engine.engines import Engines
from asgi_sqla.engine.options import Configuration
from asgi_sqla.engine.pools import Role
from asgi_sqla.engine.positions import NEVER, Following, current_position

Make: TypeAlias = Callable[[Configuration, URL, Role, Sequence[URL]], Engines]
"""Makes engines of a configuration for a first URL, a role, and every URL to use in turn."""


class FollowingEngines:
    """The engines of one database for a unit that must read what was committed before ``position``."""

    of_loops: Mapping[Any, Any] = MappingProxyType({})
    """None is kept: each is for one session."""

    def __init__(self, replicas: Engines, primary: Engines, position: int) -> None:
        self._replicas = replicas
        self._primary = primary
        self._position = position

    def sync(self) -> Engine:
        """Return a sync engine for one session."""
        return Following(self._replicas.sync(), self._primary.sync, self._position)

    def asynchronous(self) -> AsyncEngine:
        """Return an async engine for one session."""
        primary = self._primary
        replica = self._replicas.asynchronous().sync_engine
        return AsyncEngine(Following(replica, lambda: primary.asynchronous().sync_engine, self._position))


class Readers(dict[str, Engines]):
    """The engines for reading, each made on first use; those of the replicas by their role."""

    def __init__(self, engines: Engines, configuration: Configuration) -> None:
        super().__init__()
        given = configuration.engine or configuration.async_engine
        url = cast("URL", configuration.url if given is None else given.url)
        self._engines = engines
        self._is_postgresql = url.get_backend_name() == "postgresql"
        self._configuration = configuration
        replicated = bool(configuration.replicas)
        self.key: str | None = f"{zlib.crc32((url.database or '').encode()):08x}" if replicated else None
        """The database in marks; None if it has no replicas. It is the same in every process, and shows no name."""

    def of(self, role: Role, position: int | None, make: Make) -> tuple[Engines | FollowingEngines, Role]:
        """Return the engines to read with in ``role``, from where everything before ``position`` is, and their role.

        None is before every position, and ``NEVER`` after those of all replicas.
        """
        if position is None or position >= NEVER:
            return self._of(role, make, primary=position is not None)
        replicas, primary = (self._of(role, make, primary=primary)[0] for primary in (False, True))
        return FollowingEngines(replicas, primary, position), role

    def _of(self, role: Role, make: Make, *, primary: bool) -> tuple[Engines, Role]:
        name = f"{role} from the primary" if primary else role
        if name in self:
            return self[name], role
        own = () if self._engines.url is None else (self._engines.url,)
        urls = own if primary else self._configuration.replicas or own
        if not urls:
            return self._engines, "snapshot"
        return self.setdefault(name, make(self._configuration, urls[0], role, urls)), role

    @property
    def has_positions(self) -> bool:
        """Whether the position of the database can be compared with that of its replicas, if it has any."""
        return self.key is None or self._is_postgresql

    async def position(self) -> int | None:
        """Return the WAL position of the primary, in one round trip; None if the database has none."""
        return await current_position(self._engines) if self._is_postgresql else None
