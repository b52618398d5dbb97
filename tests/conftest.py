"""Fixtures for every test: a database of each kind, and a witness of its rows."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.changed import change_databases
from support.databases import (
    Backend,
    backend_names,
    connections_out,
    make_backend,
    sqlite_backend,
    without_pool,
)
from support.hops import Hops, counted_hops
from support.shares import take_share
from support.tracing import keep_tracer_from_spinning

from asgi_sqla import Database, db

REPEATED = {"psycopg": "sync", "psycopg2": "async", "mysqldb": "async", "aiomysql": "sync"}
"""Each driver of one kind gets its partner of the other kind, which another driver has already been tested with.

psycopg is the sync driver under asyncpg too; asyncpg the async one under psycopg2; and so on.
"""


def pytest_configure() -> None:
    """Change every ``Database``, if the environment asks for that."""
    keep_tracer_from_spinning()
    change_databases()


def pytest_collection_finish(session: pytest.Session) -> None:
    """In a worker, hide what the collection has made from the collector, which would spend most of its time on it."""
    if hasattr(session.config, "workerinput"):  # elsewhere Hypothesis, imported later, would look for it
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what would run a second time on the same driver, and what another run of several takes."""
    again = {item for item in items if _is_repeated(getattr(item, "callspec", None))}
    if again:
        config.hook.pytest_deselected(items=list(again))
        items[:] = [item for item in items if item not in again]
    take_share(config, items)


def _is_repeated(callspec: Any) -> bool:
    parameters = {} if callspec is None else callspec.params
    name, kind = parameters.get("backend"), parameters.get("kind")
    if kind not in ("sync", "async") or kind not in callspec.id.split("-"):  # it names drivers, and so means each
        return False
    return name in backend_names() and REPEATED.get(str(name)) == kind


@pytest.fixture(autouse=True)
def _root_logger_is_left_alone() -> Iterator[None]:
    """Set the level of the root logger back, which Celery's worker raises for the rest of the process."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture
def global_db() -> Iterator[Database]:
    """Return the global database, unconfigured before and after the test."""
    before = dict(vars(db))
    yield db
    vars(db).clear()
    vars(db).update(before)


@pytest.fixture(autouse=True)
def global_db_is_left_alone() -> Iterator[None]:
    """Fail a test that leaves the global database configured, instead of the tests after it."""
    yield
    assert not db.configured, "the test has configured the global db; it is to use the fixture global_db"


@pytest.fixture(params=backend_names())
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Return each database under test in turn, empty."""
    backend = make_backend(request.param, tmp_path)
    yield without_pool(backend) if getattr(request.module, "COPIES", False) else backend
    if request.param == "sqlite":  # a server's is the same for the next test
        backend.witness.dispose()


@pytest.fixture
def hops() -> Iterator[Hops]:
    """Count the ends of sync sessions that go to a thread."""
    with counted_hops() as hops:
        yield hops


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Backend]:
    """Return an empty SQLite file."""
    backend = sqlite_backend(tmp_path)
    yield backend
    backend.witness.dispose()


@pytest.fixture
def pipelining() -> bool:
    """Return how the ``Database`` of a test is made; modules that need both ways have a fixture of that name."""
    return True


@pytest.fixture
async def database(backend: Backend, pipelining: bool) -> AsyncIterator[Database]:
    """Return a ``Database`` on the backend, and check after the test that no connection is out."""
    database = Database(backend.url, pipelining=pipelining)
    yield database
    out = connections_out(database)
    await database.async_dispose()
    assert out == 0
