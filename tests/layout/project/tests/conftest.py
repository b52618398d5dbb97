"""A database for the tests and a client. What a test changes is undone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from httpx import ASGITransport, AsyncClient
from shop.db import db, migrations
from shop.main import app
from shop.models import Person

from asgi_sqla import Database, session_scope


@pytest.fixture(scope="session")
def asgi_sqla_database() -> Iterator[Database]:
    """Return ``db``, which is a database in memory during the tests and not the one in ``.env``."""
    db.configure("sqlite://")
    migrations.migrate()
    yield db
    db.dispose()


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, with the plugin that comes with anyio."""
    return "asyncio"


@pytest.fixture
async def client(rolled_back_database: Database) -> AsyncIterator[AsyncClient]:
    """Return a client of the application."""
    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        yield client


@pytest.fixture
async def ann(rolled_back_database: Database) -> Person:
    """Return a person who can order."""
    async with session_scope(rolled_back_database) as session:
        ann = Person(email="ann@example.org")
        session.add(ann)
    return ann
