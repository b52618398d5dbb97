"""Whether a database answers.

Holds: the statement that asks it, on one kind of engine.
Must not know: who wants to know.
"""

from __future__ import annotations

import anyio
from sqlalchemy import text
from sqlalchemy.engine import Engine

from asgi_sqla.engine.engines import Engines


async def probe(engines: Engines) -> None:
    """Connect and run ``SELECT 1``, on the async engine if there is a driver for it; raise what the driver raises."""
    if engines.has_async():
        async with engines.asynchronous().connect() as connection:
            await connection.execute(text("SELECT 1"))
    else:
        await anyio.to_thread.run_sync(_select_one, engines.sync())


def _select_one(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
