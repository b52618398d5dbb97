"""The shop of each test, and the table of them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matrix.report import print_matrix
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from neighbours.shops import Shop, database_url


def pytest_configure(config: pytest.Config) -> None:
    """Print what was tested as a table of the matrix."""
    print_matrix(config)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Return the shop, its database empty."""
    url = database_url()
    witness = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with witness.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '5s'"))  # what a test has left open must not hang the next
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    monkeypatch.setenv("DATABASE_URL", url)
    made = Shop(tmp_path, monkeypatch, witness)
    yield made
    made.dispose()
