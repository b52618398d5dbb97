"""The pytest plugin: a fixture for each tool of ``asgi_sqla.testing``, found without an import.

Holds: which database is under test, and what separates two tests and two workers.
Must not know: how anything is rolled back, copied or counted.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from asgi_sqla import Database, testing
from asgi_sqla.engine.showing import hidden
from asgi_sqla.testing import Callback, Statements

OPTION = "asgi_sqla_database"
MODE = "asgi_sqla_mode"
WRITE = f'write {OPTION} = "shop.main:db" in the pytest section, or a session fixture of that name that returns it'


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the database."""
    parser.addini(OPTION, "the Database under test, as module:name; default: the global db", default="")
    parser.addini(MODE, 'how rolled_back_database undoes a test, "transaction" or "copy"', default="transaction")


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker."""
    config.addinivalue_line(
        "markers", 'asgi_sqla(mode="copy"): how rolled_back_database undoes this test; default: "transaction"'
    )


@pytest.fixture(scope="session")
def asgi_sqla_database(pytestconfig: pytest.Config) -> Database:
    """Return the ``Database`` under test, which the configuration names. Override this fixture to name it in code."""
    path = str(pytestconfig.getini(OPTION)) or "asgi_sqla:db"
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as exc:
        raise pytest.UsageError(f"{OPTION} = {hidden(path)} cannot be imported ({exc}); {WRITE}") from exc
    return _checked(found)


@pytest.fixture(scope="session")
def asgi_sqla_worker_database(asgi_sqla_database: Database) -> Iterator[Database]:
    """Return the database under test; under pytest-xdist, a copy of it for each worker."""
    database = _checked(asgi_sqla_database)
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        yield database
        return
    with testing.rolled_back(database, mode="copy"):
        yield database


@pytest.fixture
def rolled_back_database(request: pytest.FixtureRequest, asgi_sqla_worker_database: Database) -> Iterator[Database]:
    """Return the database under test, and undo after the test everything that happened through it."""
    with testing.rolled_back(asgi_sqla_worker_database, mode=_mode(request)) as database:
        yield database


def _mode(request: pytest.FixtureRequest) -> Any:
    """Return the mode of a test: of its marker, or else of the configuration."""
    marker = request.node.get_closest_marker("asgi_sqla")
    if marker is None:
        return str(request.config.getini(MODE))
    given = [*marker.args, *marker.kwargs.values()]
    if len(given) != 1 or marker.kwargs.keys() - {"mode"}:
        raise pytest.UsageError(f'{request.node.nodeid}: write @pytest.mark.asgi_sqla(mode="copy"), or "transaction"')
    return given[0]


@pytest.fixture
def captured_callbacks() -> Iterator[list[Callback]]:
    """Return the list of callbacks that are due in the test; they are not called."""
    with testing.captured_callbacks() as callbacks:
        yield callbacks


@pytest.fixture
def count_statements(asgi_sqla_database: Database) -> Callable[..., AbstractContextManager[Statements]]:
    """Return ``count_statements`` for the database under test."""
    return partial(testing.count_statements, asgi_sqla_database)


@pytest.fixture
def assert_statements(asgi_sqla_database: Database) -> Callable[..., AbstractContextManager[Statements]]:
    """Return ``assert_statements`` for the database under test."""
    return partial(testing.assert_statements, asgi_sqla_database)


@pytest.fixture
def fail_commit(asgi_sqla_database: Database) -> Callable[..., AbstractContextManager[None]]:
    """Return ``fail_commit`` for the database under test."""
    return partial(testing.fail_commit, asgi_sqla_database)


@pytest.fixture
def kill_connection(asgi_sqla_database: Database) -> Callable[..., AbstractContextManager[None]]:
    """Return ``kill_connection`` for the database under test."""
    return partial(testing.kill_connection, asgi_sqla_database)


def _checked(database: object) -> Database:
    if not isinstance(database, Database):
        raise pytest.UsageError(f"{OPTION} is {hidden(database)}, which is not a Database; {WRITE}")
    return database
