"""On PostgreSQL the connections of read-only units are read-only from their start, without a statement."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, make_url, text
from support.databases import make_backend
from support.marks import POSTGRESQL

from asgi_sqla import Database, session_scope

DRIVERS = [("asyncpg", "async"), ("psycopg", "async"), ("psycopg", "sync"), ("psycopg2", "sync")]
KEPT, OTHER = ("5120", "client"), ("4096", "default")
WAYS = {
    "nothing": ("client", OTHER),
    "in the URL": ("client", KEPT),
    "in connect_args": ("client", KEPT),
    "in the environment": ("client", KEPT),
    "of replicas": ("client", KEPT),
    "in a service": ("session", KEPT),
    "among hosts": ("session", OTHER),
    "by a creator": ("session", OTHER),
}
"""What the user writes, then what makes the connection read-only, and how a setting of the user's is found."""

pytestmark = pytest.mark.skipif(not POSTGRESQL, reason="no PostgreSQL is tested")


async def settings(database: Database, kind: str) -> dict[str, tuple[str, str]]:
    """Return the values and sources of two settings in a read-only unit."""
    query = text(
        "SELECT name, setting, source FROM pg_settings WHERE name IN ('default_transaction_read_only', 'work_mem')"
    )

    def in_thread() -> Any:
        with session_scope(database, read_only=True) as session:
            return session.execute(query).all()

    if kind == "sync":
        rows = await asyncio.to_thread(in_thread)
    else:
        async with session_scope(database, read_only=True) as session:
            rows = (await session.execute(query)).all()
    return {name: (setting, source) for name, setting, source in rows}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("driver", "kind"), DRIVERS)
async def test_what_the_user_writes_is_kept(
    driver: str, kind: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameter is added to it; where that cannot be done, a statement makes the connection read-only."""
    if driver == "asyncpg" and way in ("in the environment", "in a service"):
        pytest.skip("asyncpg reads no options there")
    if way == "in the environment":
        monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB")
    elif way == "in a service":
        (tmp_path / "services").write_text("[mine]\noptions=-c work_mem=5MB\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        monkeypatch.setenv("PGSERVICE", "mine")
    url, own = written(way, make_url(make_backend(driver, tmp_path).url), kind)
    database = Database(url, **own)

    found = [await settings(database, kind) for _ in range(2)]
    await database.async_dispose()

    source, work_mem = WAYS[way]
    assert found == [{"default_transaction_read_only": ("on", source), "work_mem": work_mem}] * 2


def written(way: str, url: URL, kind: str) -> tuple[URL, dict[str, Any]]:
    """Return the URL and the other arguments that the user writes."""
    with_options = url.update_query_dict({"options": "-c work_mem=5MB"})
    if way == "in the URL":
        return with_options, {}
    if way == "of replicas":
        return url, {"read_only_url": [with_options, with_options]}
    if way == "in connect_args":
        libpq, asyncpg = {"options": "-c work_mem=5MB"}, {"server_settings": {"work_mem": "5MB"}}
        return url, {"engine_options": {"connect_args": asyncpg if url.get_driver_name() == "asyncpg" else libpq}}
    if way == "among hosts":  # the driver asks each server whether it may write
        return url.update_query_dict({"target_session_attrs": "read-write"}), {}
    return url, creating(url, kind) if way == "by a creator" else {}


def creating(url: Any, kind: str) -> dict[str, Any]:
    """Return options that make the connections."""
    made = create_engine(url) if kind == "sync" else None
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    if made is not None:
        return {"engine_options": {"creator": lambda: made.dialect.loaded_dbapi.connect(plain)}}
    if url.get_driver_name() == "asyncpg":
        import asyncpg  # type: ignore[import-untyped]

        return {"async_engine_options": {"async_creator": lambda: asyncpg.connect(plain)}}
    import psycopg

    return {"async_engine_options": {"async_creator": lambda: psycopg.AsyncConnection.connect(plain)}}
