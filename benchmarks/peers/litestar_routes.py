"""The routes of the Litestar contenders.

Must not know: any contender.
"""

# No postponed annotations here: Litestar reads those of functions within functions when it is given them.

from typing import Any

from litestar import Response, get, post
from litestar.response import Stream
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.peers.bodies import pieces
from benchmarks.work import read_async, refused_async, write_async


@get("/unused")
async def unused() -> Response[None]:
    """Answer."""
    return Response(None)


@get("/read")
async def reading(db_session: AsyncSession) -> Response[None]:
    """SELECT."""
    await read_async(db_session)
    return Response(None)


@get("/slow")
async def slow(db_session: AsyncSession) -> Stream:
    """SELECT, then stream."""
    await read_async(db_session)
    return Stream(pieces())


@post("/write")
async def write(db_session: AsyncSession) -> Response[None]:
    """INSERT."""
    await write_async(db_session)
    return Response(None, status_code=201)


@post("/refused")
async def refused(db_session: AsyncSession) -> Response[None]:
    """INSERT what is refused at COMMIT."""
    await refused_async(db_session)
    return Response(None, status_code=201)


@post("/undone")
async def undone(db_session: AsyncSession) -> Response[None]:
    """INSERT, and answer 422."""
    await write_async(db_session)
    return Response(None, status_code=422)


@post("/moved")
async def moved(db_session: AsyncSession) -> Response[None]:
    """INSERT, and answer 303."""
    await write_async(db_session)
    return Response(None, status_code=303)


HANDLERS: list[Any] = [unused, reading, slow, write, refused, undone, moved]
