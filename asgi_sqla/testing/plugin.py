"""The pytest plugin: the fixtures that ``asgi_sqla.testing`` gives every test, found without an import.

Lives here: which database the tests are about, and what stands between two tests and two workers.
Must not know: how anything is rolled back, copied or counted.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from asgi_sqla import Database, testing
from asgi_sqla.engine.urls import hidden
from asgi_sqla.unit.callbacks import Callback

OPTION = "asgi_sqla_database"
WRITE = f'write {OPTION} = "shop.main:db" in the pytest section, or a session fixture of that name that returns it'


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the configuration name the database."""
    parser.addini(OPTION, "where the Database under test is, as module:name; the global db if not given", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker."""
    config.addinivalue_line(
        "markers", 'asgi_sqla(mode="copy"): how rolled_back_database undoes this test; "transaction" if not said'
    )


@pytest.fixture(scope="session")
def asgi_sqla_database(pytestconfig: pytest.Config) -> Database:
    """Return the ``Database`` under test: the one that the configuration names. Override it to name it in code."""
    path = str(pytestconfig.getini(OPTION)) or "asgi_sqla:db"
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as exc:
        raise pytest.UsageError(f"{OPTION} = {hidden(path)} cannot be imported ({exc}); {WRITE}") from exc
    return _checked(found)


@pytest.fixture(scope="session")
def asgi_sqla_worker_database(asgi_sqla_database: Database) -> Iterator[Database]:
    """Return the database under test; under pytest-xdist it is a copy for as long as the worker runs."""
    database = _checked(asgi_sqla_database)
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        yield database
        return
    with testing.rolled_back(database, mode="copy"):
        yield database


@pytest.fixture
def rolled_back_database(request: pytest.FixtureRequest, asgi_sqla_worker_database: Database) -> Iterator[Database]:
    """Return the database under test, and undo after the test all that happened through it."""
    marker = request.node.get_closest_marker("asgi_sqla")
    options: dict[str, Any] = {} if marker is None else marker.kwargs
    with testing.rolled_back(asgi_sqla_worker_database, **options) as database:
        yield database


@pytest.fixture
def captured_callbacks() -> Iterator[list[Callback]]:
    """Return the list of callbacks that fall due in the test; they are not called."""
    with testing.captured_callbacks() as callbacks:
        yield callbacks


@pytest.fixture
def count_statements(asgi_sqla_database: Database) -> Callable[..., AbstractContextManager[list[str]]]:
    """Return ``count_statements`` of the database under test."""
    return partial(testing.count_statements, asgi_sqla_database)


@pytest.fixture
def assert_statements(asgi_sqla_database: Database) -> Callable[..., AbstractContextManager[list[str]]]:
    """Return ``assert_statements`` of the database under test."""
    return partial(testing.assert_statements, asgi_sqla_database)


@pytest.fixture
def fail_commit(asgi_sqla_database: Database) -> Callable[..., AbstractContextManager[None]]:
    """Return ``fail_commit`` of the database under test."""
    return partial(testing.fail_commit, asgi_sqla_database)


@pytest.fixture
def kill_connection(asgi_sqla_database: Database) -> Callable[..., AbstractContextManager[None]]:
    """Return ``kill_connection`` of the database under test."""
    return partial(testing.kill_connection, asgi_sqla_database)


def _checked(database: object) -> Database:
    if not isinstance(database, Database):
        raise pytest.UsageError(f"{OPTION} is {hidden(database)}, which is no Database; {WRITE}")
    return database
