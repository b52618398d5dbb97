"""Work on the session of a scope, of either kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from asgi_sqla import Database, session_scope


async def in_scope(database: Database, kind: str, work: Callable[[Session], Any], **options: Any) -> Any:
    """Return what ``work`` returns for the session of a scope; in a thread, if it is a sync one."""
    if kind == "async":
        async with session_scope(database, **options) as session:
            return await session.run_sync(work)

    def in_thread() -> Any:
        with session_scope(database, **options) as session:
            return work(session)

    return await asyncio.to_thread(in_thread)
