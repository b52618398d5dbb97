"""FastAPI under a real server, with the middleware in each place and with the parts of real applications."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from sqlalchemy import Connection, Engine, event, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from support.databases import NO_OWNER, Backend, Item
from support.marks import KINDS, on_one, on_postgresql
from support.servers import Server, errors, statuses

from asgi_sqla import Database, NoUnitOfWorkError, SQLAlchemyMiddleware, current_unit, session_scope

POSITIONS = ["add_middleware", "outermost"]
at_every_position = pytest.mark.parametrize("position", POSITIONS)
CallNext = Callable[[Request], Awaitable[Response]]


def install(api: FastAPI, database: Database, position: str = "outermost", **options: Any) -> Any:
    """Return the application with the middleware at ``position``."""
    if position == "outermost":
        return SQLAlchemyMiddleware(api, database, **options)
    api.add_middleware(SQLAlchemyMiddleware, database=database, **options)
    return api


def writing_api(database: Database) -> FastAPI:
    """Return an application that writes in each kind of endpoint."""
    api = FastAPI()

    @api.post("/async", status_code=201)
    async def write_async(name: str, owner: int | None = None, status: int = 201) -> Response:
        database.async_session.add(Item(name=name, owner_id=owner))
        await database.async_session.flush()
        return JSONResponse({}, status)

    @api.post("/sync", status_code=201)
    def write_sync(name: str, owner: int | None = None, status: int = 201) -> Response:
        database.session.add(Item(name=name, owner_id=owner))
        database.session.flush()
        return JSONResponse({}, status)

    @api.post("/raise")
    async def write_and_raise(name: str) -> None:
        database.async_session.add(Item(name=name))
        await database.async_session.flush()
        raise HTTPException(409)

    return api


@at_every_position
def test_every_position_commits_and_rolls_back(database: Database, backend: Backend, position: str) -> None:
    """Both kinds of endpoint, a returned 422 and a raised HTTPException behave the same in each position."""
    with Server(install(writing_api(database), database, position)) as server:
        with httpx.Client(base_url=server.url) as client:
            answers = [
                client.post("/async?name=a").status_code,
                client.post("/sync?name=b").status_code,
                client.post("/async?name=c&status=422").status_code,
                client.post("/sync?name=d&status=422").status_code,
                client.post("/raise?name=e").status_code,
            ]
        out = server.out(database)

    assert answers == [201, 201, 422, 422, 409]
    assert (out, backend.names()) == (0, ["a", "b"])


@at_every_position
@pytest.mark.parametrize("handled", [IntegrityError, Exception])
@pytest.mark.parametrize("mapped", [False, True], ids=["unmapped", "mapped"])
@on_one
def test_an_exception_handler_of_the_user_does_not_change_our_answer(
    database: Database,
    backend: Backend,
    position: str,
    handled: type[Exception],
    mapped: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a handler for the failed COMMIT's class, or for Exception, there is still one response and one traceback."""
    api = writing_api(database)

    @api.exception_handler(handled)
    async def on_error(_request: Request, _exc: Exception) -> Response:
        return PlainTextResponse("the user's", 418)

    options = {"error_responses": {backend.commit_error: 409}} if mapped else {}
    with Server(install(api, database, position, **options)) as server:
        wire = server.raw(f"/async?name=a&owner={NO_OWNER}")
        out = server.out(database)

    assert statuses(wire) == [409 if mapped else 500]
    assert errors(caplog.records) == [backend.commit_error.__name__]
    assert (out, backend.names()) == (0, [])


@at_every_position
@on_one
def test_a_failed_flush_still_goes_to_the_handler_of_the_user(
    database: Database, backend: Backend, position: str
) -> None:
    """A failure in the endpoint belongs to the application: its handler answers, and nothing is kept."""
    api = writing_api(database)

    @api.exception_handler(IntegrityError)
    async def on_error(_request: Request, _exc: Exception) -> Response:
        return PlainTextResponse("taken", 418)

    with Server(install(api, database, position)) as server, httpx.Client(base_url=server.url) as client:
        answers = [client.post(f"/{kind}?name=a").status_code for kind in ("async", "async", "sync")]

    assert answers == [201, 418, 418]
    assert backend.names() == ["a"]


@at_every_position
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_background_task_commits_on_its_own(database: Database, backend: Backend, kind: str, position: str) -> None:
    """Its writes after the response are committed after it, in another transaction than the response's."""
    api = FastAPI()
    seen: list[list[str]] = []

    def write_later() -> None:
        seen.append(backend.names())
        database.session.add(Item(name="later"))

    async def write_later_async() -> None:
        seen.append(backend.names())
        database.async_session.add(Item(name="later"))

    @api.post("/", status_code=201)
    async def endpoint(tasks: BackgroundTasks) -> None:
        database.async_session.add(Item(name="now"))
        tasks.add_task(write_later if kind == "sync" else write_later_async)

    with Server(install(api, database, position)) as server:
        wire = server.raw()
        out = server.out(database)

    assert (statuses(wire), seen, out) == ([201], [["now"]], 0)
    assert backend.names() == ["later", "now"]


@at_every_position
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_failed_background_task_loses_only_its_own(
    database: Database, backend: Backend, kind: str, position: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server sees its error once; its writes are rolled back, and the response's are not."""
    api = FastAPI()

    def fail_later() -> None:
        database.session.add(Item(name="later"))
        database.session.flush()
        raise ValueError("later")

    async def fail_later_async() -> None:
        database.async_session.add(Item(name="later"))
        await database.async_session.flush()
        raise ValueError("later")

    @api.post("/", status_code=201)
    async def endpoint(tasks: BackgroundTasks) -> None:
        database.async_session.add(Item(name="now"))
        tasks.add_task(fail_later if kind == "sync" else fail_later_async)

    with Server(install(api, database, position)) as server:
        wire = server.raw()
        out = server.out(database)

    assert (statuses(wire), out, backend.names()) == ([201], 0, ["now"])
    assert errors(caplog.records) == ["ValueError"]


@on_one
def test_a_background_commit_that_fails_is_raised_to_the_server(
    database: Database, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The client has its answer by then, and the log has the failure once."""
    api = FastAPI()

    async def write_later() -> None:
        database.async_session.add(Item(name="later", owner_id=NO_OWNER))

    @api.post("/", status_code=201)
    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(write_later)

    with Server(install(api, database)) as server:
        wire = server.raw()
        out = server.out(database)

    assert (statuses(wire), out, backend.names()) == ([201], 0, [])
    assert errors(caplog.records) == [backend.commit_error.__name__]


def dependencies(database: Database, kind: str) -> Any:
    """Return a dependency that gives the session of ``kind``, and writes before and after the endpoint."""

    def sync_dependency(name: str) -> Iterator[Session]:
        database.session.add(Item(name=f"{name}, set up"))
        try:
            yield database.session
        finally:
            database.session.add(Item(name=f"{name}, torn down"))

    async def async_dependency(name: str) -> AsyncIterator[AsyncSession]:
        database.async_session.add(Item(name=f"{name}, set up"))
        try:
            yield database.async_session
        finally:
            database.async_session.add(Item(name=f"{name}, torn down"))

    return sync_dependency if kind == "sync" else async_dependency


@pytest.mark.parametrize(
    ("scope", "kept_of_an_error"),
    [("request", ["bad, torn down"]), ("function", [])],  # after the response, that is, or before it
)
@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_dependency_with_yield_works_in_the_unit_of_the_request(
    database: Database, backend: Backend, kind: str, scope: Any, kept_of_an_error: list[str]
) -> None:
    """Its set-up shares the response's transaction; so does its teardown, unless that runs after the response."""
    api = FastAPI()

    @api.post("/")
    async def endpoint(
        name: str, status: int, session: Annotated[Any, Depends(dependencies(database, kind), scope=scope)]
    ) -> Response:
        session.add(Item(name=name))
        return Response(status_code=status)

    with Server(install(api, database)) as server, httpx.Client(base_url=server.url) as client:
        answers = [client.post("/?name=good&status=201").status_code, client.post("/?name=bad&status=400").status_code]
        out = server.out(database)

    assert (answers, out) == ([201, 400], 0)
    assert backend.names() == kept_of_an_error + ["good", "good, set up", "good, torn down"]


@pytest.mark.parametrize("scope", ["request", "function"])
@on_one
def test_a_dependency_sees_the_error_of_its_endpoint(database: Database, backend: Backend, scope: Any) -> None:
    """An error passes through a dependency with yield, and the writes of both are rolled back."""
    api = FastAPI()
    seen: list[str] = []

    async def dependency() -> AsyncIterator[None]:
        database.async_session.add(Item(name="set up"))
        try:
            yield
        except ValueError as exc:
            seen.append(repr(exc))
            raise

    @api.post("/")
    async def endpoint(_: Annotated[None, Depends(dependency, scope=scope)]) -> None:
        await database.async_session.flush()
        raise ValueError("no")

    with Server(install(api, database)) as server:
        wire = server.raw()
        out = server.out(database)

    assert (statuses(wire), seen, out, backend.names()) == ([500], ["ValueError('no')"], 0, [])


@at_every_position
@on_one
def test_a_teardown_after_a_failed_commit_changes_nothing(
    database: Database, backend: Backend, position: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A dependency that suppresses everything and uses the database again finds an ended unit; the answer stays."""
    api = FastAPI()
    met: list[str] = []

    async def dependency() -> AsyncIterator[None]:
        try:
            yield
        finally:
            try:
                await database.async_session.execute(select(Item))
            except Exception as exc:
                met.append(type(exc).__name__)
                raise

    @api.post("/", status_code=201)
    async def endpoint(_: Annotated[None, Depends(dependency)]) -> None:
        database.async_session.add(Item(name="a", owner_id=NO_OWNER))

    with Server(install(api, database, position)) as server:
        wire = server.raw()
        out = server.out(database)

    assert (statuses(wire), met, out) == ([500], ["UnitOfWorkEndedError"], 0)
    assert errors(caplog.records) == [backend.commit_error.__name__]


@on_one
def test_a_validation_error_rolls_back_what_a_dependency_wrote(database: Database, backend: Backend) -> None:
    """FastAPI's own 422 is a status like any other."""
    api = FastAPI()

    async def dependency() -> None:
        database.async_session.add(Item(name="set up"))
        await database.async_session.flush()

    @api.post("/")
    async def endpoint(number: int, _: Annotated[None, Depends(dependency)]) -> None:
        raise AssertionError

    with Server(install(api, database)) as server:
        wire = server.raw("/?number=none")

    assert (statuses(wire), backend.names()) == ([422], [])


@pytest.mark.parametrize(("status", "kept"), [(201, ["async", "sync"]), (400, [])])
def test_both_kinds_of_session_in_one_request_are_one_decision(
    database: Database, backend: Backend, status: int, kept: list[str]
) -> None:
    """A ``def`` dependency and an ``async def`` endpoint have two sessions, which end the same way."""
    if backend.name == "sqlite":
        kept = [name for name in kept if name == "sync"]  # SQLite lets one transaction write at a time
    api = FastAPI()

    def sync_dependency() -> None:
        database.session.add(Item(name="sync"))
        database.session.flush()

    @api.post("/")
    async def endpoint(_: Annotated[None, Depends(sync_dependency)]) -> Response:
        if backend.name == "sqlite":
            await database.async_session.execute(select(Item))
        else:
            database.async_session.add(Item(name="async"))
        return Response(status_code=status)

    with Server(install(api, database)) as server:
        wire = server.raw()
        out = server.out(database)

    assert (statuses(wire), out, backend.names()) == ([status], 0, kept)


@at_every_position
@pytest.mark.parametrize(("status", "kept"), [(201, ["middleware", "sub"]), (400, [])])
@on_one
def test_a_mounted_application_with_the_middleware_again_uses_the_same_unit(
    database: Database, backend: Backend, position: str, status: int, kept: list[str]
) -> None:
    """Two layers of the middleware have one unit, one COMMIT, and the verdict of the outer one."""
    api, sub = FastAPI(), FastAPI()
    units: list[Any] = []

    @sub.post("/")
    async def endpoint() -> Response:
        units.append(current_unit())
        database.async_session.add(Item(name="sub"))
        return Response(status_code=status)

    @api.middleware("http")
    async def write_too(request: Request, call_next: CallNext) -> Response:
        units.append(current_unit())
        database.async_session.add(Item(name="middleware"))
        return await call_next(request)

    api.mount("/sub", install(sub, database, "add_middleware", commit_on=range(100, 600)))
    commits: list[Connection] = []

    def note(connection: Connection) -> None:
        commits.append(connection)

    with Server(install(api, database, position)) as server:
        event.listen(Engine, "commit", note)
        wire = server.raw("/sub/")
        event.remove(Engine, "commit", note)
        out = server.out(database)

    assert (statuses(wire), out, backend.names()) == ([status], 0, kept)
    assert (units[0] is units[1], len(commits)) == (True, 1 if kept else 0)


class PassOn(BaseHTTPMiddleware):
    """The base class unchanged: it runs the application in a separate task, its response through a queue."""

    async def dispatch(self, request: Request, call_next: CallNext) -> Response:
        """Pass the request on."""
        return await call_next(request)


@pytest.mark.parametrize("where", ["around", "inside", "both"])
@pytest.mark.parametrize(("owner", "status", "kept"), [(None, 201, ["later", "now"]), (NO_OWNER, 500, [])])
@on_one
def test_base_http_middleware_around_and_inside(
    database: Database,
    backend: Backend,
    where: str,
    owner: int | None,
    status: int,
    kept: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A commit and a failed one, with a background task, pass through the tasks and queues of Starlette's class."""
    api = FastAPI()

    async def later() -> None:
        database.async_session.add(Item(name="later"))

    @api.post("/", status_code=201)
    async def endpoint(tasks: BackgroundTasks) -> None:
        database.async_session.add(Item(name="now", owner_id=owner))
        tasks.add_task(later)

    if where != "around":
        api.add_middleware(PassOn)
    api.add_middleware(SQLAlchemyMiddleware, database=database)
    if where != "inside":
        api.add_middleware(PassOn)
    with Server(api) as server:
        wire = server.raw()
        out = server.out(database)

    assert (statuses(wire), out, backend.names()) == ([status], 0, kept)
    assert errors(caplog.records) == ([] if kept else [backend.commit_error.__name__])


@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_streaming_body_may_use_the_session(database: Database, backend: Backend, kind: str) -> None:
    """A generator reads and writes while it streams, after the commit of the response."""
    api = FastAPI()

    def rows() -> Iterator[str]:
        yield from database.session.scalars(select(Item.name))
        database.session.add(Item(name="streamed"))

    async def async_rows() -> AsyncIterator[str]:
        for name in await database.async_session.scalars(select(Item.name)):
            yield name
        database.async_session.add(Item(name="streamed"))

    @api.post("/")
    async def endpoint() -> Response:
        database.async_session.add(Item(name="now"))
        return StreamingResponse(rows() if kind == "sync" else async_rows())

    with Server(install(api, database)) as server, httpx.Client(base_url=server.url) as client:
        answer = client.post("/")
        out = server.out(database)

    assert (answer.status_code, answer.text, out) == (200, "now", 0)
    assert backend.names() == ["now", "streamed"]


@pytest.mark.parametrize("kind", KINDS)
@on_one
def test_a_failed_commit_keeps_a_stream_from_starting(
    database: Database, backend: Backend, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the generator nor the background task of a StreamingResponse runs, in any task."""
    api = FastAPI()
    ran: list[str] = []

    def rows() -> Iterator[str]:
        ran.append("generator")
        yield "row"

    async def async_rows() -> AsyncIterator[str]:
        ran.append("generator")
        yield "row"

    @api.post("/")
    async def endpoint() -> Response:
        database.async_session.add(Item(name="now", owner_id=NO_OWNER))
        later = BackgroundTask(ran.append, "background task")
        return StreamingResponse(rows() if kind == "sync" else async_rows(), background=later)

    with Server(install(api, database)) as server:
        wire = server.raw()
        out = server.out(database)

    assert (statuses(wire), ran, out, backend.names()) == ([500], [], 0, [])
    assert errors(caplog.records) == [backend.commit_error.__name__]


@on_postgresql
def test_a_second_task_on_a_session_gets_an_error_that_says_what_to_write(database: Database, backend: Backend) -> None:
    """The second task gets SessionInUseError, the first its rows, and the request its commit."""
    api = FastAPI()

    @api.get("/both")
    async def both() -> list[str]:
        async def ask() -> str:
            await database.async_session.execute(text("SELECT pg_sleep(0.05)"))
            return "slept"

        return [str(outcome) for outcome in await asyncio.gather(ask(), ask(), return_exceptions=True)]

    @api.get("/each")
    async def each() -> list[int]:
        async def ask() -> int:
            async with session_scope(database) as session:
                return int(await session.scalar(text("SELECT 1")) or 0)

        return await asyncio.gather(*(ask() for _ in range(5)))

    with Server(install(api, database)) as server, httpx.Client(base_url=server.url) as client:
        slept, error = client.get("/both").json()
        as_told = client.get("/each").json()
        out = server.out(database)

    assert slept == "slept"
    assert error.startswith("a session of <UnitOfWork GET /both open> is in use by task '")
    assert error.endswith(": async with session_scope() as session: ...")
    assert (as_told, out) == ([1] * 5, 0)


async def post_200(url: str) -> tuple[list[int], float]:
    """Post 200 times at once; return every status, and the seconds it took."""
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        started = time.perf_counter()
        answers = await asyncio.gather(*(client.post(f"/?name=item{number}") for number in range(200)))
        return [answer.status_code for answer in answers], time.perf_counter() - started


@on_one
async def test_200_sync_endpoints_share_a_pool_of_5(backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    """No commit waits for a thread of a waiting endpoint, so all succeed. The test prints the times."""
    database = Database(backend.url, engine_options={"pool_size": 5, "max_overflow": 0, "pool_timeout": 20})
    api, by_hand = FastAPI(), FastAPI()

    @api.post("/", status_code=201)
    def endpoint(name: str) -> None:
        database.session.add(Item(name=name))
        database.session.flush()

    @by_hand.post("/", status_code=201)
    def endpoint_by_hand(name: str) -> None:
        with Session(database.engine) as session:
            session.add(Item(name=f"{name} by hand"))
            session.commit()

    with Server(install(api, database)) as server:
        statuses_of_ours, seconds = await post_200(server.url)
        out = server.out(database)
    with Server(by_hand) as server:
        statuses_by_hand, seconds_by_hand = await post_200(server.url)
    database.dispose()

    assert (statuses_of_ours, statuses_by_hand, out) == ([201] * 200, [201] * 200, 0)
    assert len(backend.names()) == 400
    with capsys.disabled():
        print(f"\n200 def endpoints, pool of 5: {seconds:.2f} s, committed inline by hand: {seconds_by_hand:.2f} s")


@at_every_position
@pytest.mark.parametrize("handled", [Exception, 500])
async def test_a_handler_of_everything_is_in_the_unit_of_a_wrapped_application(
    sqlite: Backend, position: str, handled: Any
) -> None:
    """Starlette calls it outside of all middleware that is added."""
    database = Database(sqlite.url)
    api = FastAPI()

    @api.get("/")
    async def endpoint() -> None:
        raise ValueError

    @api.exception_handler(handled)
    async def on_error(_request: Request, _exc: Exception) -> Response:
        try:
            return PlainTextResponse(str(current_unit()), 500)
        except NoUnitOfWorkError:
            return PlainTextResponse("none", 500)

    transport = httpx.ASGITransport(install(api, database, position), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/")
    await database.async_dispose()

    assert answer.text == ("<UnitOfWork GET / open>" if position == "outermost" else "none")


async def test_an_object_in_the_place_of_the_class_is_an_error(sqlite: Backend) -> None:
    """Starlette calls what it is given with the application alone."""
    api = FastAPI()
    mistake: Any = SQLAlchemyMiddleware(api, Database(sqlite.url))
    api.add_middleware(mistake)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
        with pytest.raises(TypeError, match="missing 2 required positional arguments"):
            await client.get("/")
