"""OpenTelemetry: where the spans of COMMIT and ROLLBACK stand, what they say, and what is measured."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.metrics import db_metrics as pool_metrics
from opentelemetry.semconv.attributes import db_attributes, error_attributes, server_attributes
from opentelemetry.semconv.metrics import db_metrics
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from support.asgi import Call, http_scope, respond
from support.dark import dark
from support.databases import NO_OWNER, Backend, Item
from support.failing import Trouble, engine_of, execute, insert, lose_network, until
from support.marks import KINDS, on_deferring, on_one, on_postgresql
from support.observing import Reports
from support.servers import Server
from support.services import mariadb_url, missing

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, current_unit, session_scope
from asgi_sqla.telemetry import attributes, instrument
from asgi_sqla.testing import rolled_back
from asgi_sqla.unit import cancellation

INSTRUMENTED = sqlalchemy.__version__ < "2.1"
"""Whether OpenTelemetry's instrumentation of SQLAlchemy takes this version of it."""


class Sent:
    """An SDK in memory, and what was sent to it."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracer_provider, self.meter_provider = TracerProvider(), MeterProvider([self._reader])
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.tracer_provider.get_tracer("tests")

    def instrument(self, *databases: Database) -> None:
        """Instrument databases for this SDK."""
        instrument(*databases, tracer_provider=self.tracer_provider, meter_provider=self.meter_provider)

    def outside(self, app: Any) -> Any:
        """Return the application inside OpenTelemetry's middleware."""
        return OpenTelemetryMiddleware(app, tracer_provider=self.tracer_provider, exclude_spans=["receive", "send"])

    @property
    def spans(self) -> list[Any]:
        """The spans that have ended, in the order of their begin; not of connections, as the witness has such too."""
        spans = (one for one in self._exporter.get_finished_spans() if one.name != "connect")
        return sorted(spans, key=lambda one: one.start_time or 0)

    def ours(self) -> list[Any]:
        """Return those of COMMIT and ROLLBACK."""
        return [one for one in self.spans if one.name.startswith(("COMMIT ", "ROLLBACK "))]

    def tree(self) -> list[tuple[str, str | None]]:
        """Return the first word of each span, and of the span around it."""
        names = {one.context.span_id: one.name for one in self.spans}
        parents = (None if one.parent is None else names[one.parent.span_id] for one in self.spans)
        return [
            (one.name.partition(" ")[0], parent and parent.partition(" ")[0])
            for one, parent in zip(self.spans, parents, strict=True)
        ]

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric."""
        data: Any = self._reader.get_metrics_data()
        metrics = [one for each in data.resource_metrics for scope in each.scope_metrics for one in scope.metrics]
        return [point for one in metrics if one.name == name for point in one.data.data_points]


@pytest.fixture
def sent() -> Sent:
    """Return an SDK in memory."""
    return Sent()


@pytest.fixture
def statements(sent: Sent) -> Iterator[None]:
    """Have the statements of engines that are made during the test traced, if this SQLAlchemy can be."""
    SQLAlchemyInstrumentor().instrument(tracer_provider=sent.tracer_provider)
    yield
    if INSTRUMENTED:
        SQLAlchemyInstrumentor().uninstrument()


def application(database: Database, kind: str, *, status: int = 201, **fields: Any) -> Any:
    """Return an application that writes one item."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await insert(database, kind, name="tea", **fields)
            await respond(send, status)

    return SQLAlchemyMiddleware(app, database)


@on_one
@pytest.mark.usefixtures("statements")
@pytest.mark.parametrize("kind", KINDS)
def test_spans_nest_below_the_request(backend: Backend, sent: Sent, kind: str) -> None:
    """On a real server, COMMIT comes after the statements, and all are below the span of the request, in its time."""
    database = Database(backend.url)
    sent.instrument(database)
    with Server(sent.outside(application(database, kind))) as server:
        assert server.raw("/orders").startswith(b"HTTP/1.1 201")
        assert server.idle()
        server.call(database.async_dispose())
    traced = [("INSERT", "POST")] if INSTRUMENTED else []
    assert sent.tree() == [("POST", None), *traced, ("COMMIT", "POST")]
    request, *_, commit = sent.spans
    assert request.start_time < commit.start_time < commit.end_time < request.end_time
    assert {one.context.trace_id for one in sent.spans} == {request.context.trace_id}


@on_one
@pytest.mark.usefixtures("statements")
def test_every_engine_is_traced(backend: Backend, sent: Sent) -> None:
    """The instrumentation of SQLAlchemy sees those of each event loop, for reading, and made after ``dispose()``."""
    database = Database(backend.url)

    async def select(*, read_only: bool) -> None:
        async with session_scope(database, read_only=read_only) as session:
            await session.execute(text("SELECT 1"))

    for read_only in (False, True, False):
        asyncio.run(select(read_only=read_only))
        with session_scope(database, read_only=read_only) as session:
            session.execute(text("SELECT 1"))
        database.dispose()
    selected = [one for one in sent.spans if one.name.startswith("SELECT")]
    assert len(selected) == (6 if INSTRUMENTED else 0)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_fastapi_is_instrumented_before_or_after_the_middleware(
    sqlite: Backend, sent: Sent, kind: str, order: str
) -> None:
    """Its instrumentation is outermost either way."""
    from fastapi import FastAPI

    app, database = FastAPI(), Database(sqlite.url)
    sent.instrument(database)
    options: Any = {"tracer_provider": sent.tracer_provider, "exclude_spans": ["receive", "send"]}
    if order == "before":
        FastAPIInstrumentor.instrument_app(app, **options)
    app.add_middleware(SQLAlchemyMiddleware, database=database)
    if order == "after":
        FastAPIInstrumentor.instrument_app(app, **options)

    @app.post("/sync")
    def create_plainly() -> None:
        database.session.add(Item(name="tea"))

    @app.post("/async")
    async def create() -> None:
        database.async_session.add(Item(name="tea"))

    with Server(app) as server:
        assert server.raw(f"/{kind}").startswith(b"HTTP/1.1 200")
        assert server.idle()
        server.call(database.async_dispose())
    assert sent.tree() == [("POST", None), ("COMMIT", "POST")]


async def test_inside_our_middleware_a_commit_has_no_parent(sqlite: Backend, sent: Sent) -> None:
    """This is what the page says of the wrong order."""
    database = Database(sqlite.url)
    sent.instrument(database)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name="tea")
        await respond(send, 201)

    await Call(SQLAlchemyMiddleware(sent.outside(app), database), http_scope("/", "POST"))()
    assert sent.tree() == [("POST", None), ("COMMIT", None)]
    await database.async_dispose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rollback_for_a_response_is_no_error(
    database: Database, backend: Backend, sent: Sent, kind: str
) -> None:
    """Its span says why; its attributes are those of the conventions."""
    sent.instrument(database)
    await Call(sent.outside(application(database, kind, status=422)), http_scope("/orders", "POST"))()
    (span,) = sent.ours()
    assert span.name.startswith("ROLLBACK ")
    assert (span.kind, span.status.status_code) == (SpanKind.CLIENT, StatusCode.UNSET)
    said = dict(span.attributes)
    assert said.pop(server_attributes.SERVER_ADDRESS, None) == (
        backend.witness.url.host or backend.witness.url.query.get("host")
    )
    assert said == {
        db_attributes.DB_SYSTEM_NAME: "mariadb" if backend.is_mariadb else backend.witness.url.get_backend_name(),
        db_attributes.DB_NAMESPACE: backend.witness.url.database,
        db_attributes.DB_OPERATION_NAME: "ROLLBACK",
        "asgi_sqla.unit.name": "POST /orders",
        "asgi_sqla.unit.kind": "request",
        "asgi_sqla.unit.outcome": "rolled back",
        "asgi_sqla.unit.reason": "answered 422",
        "asgi_sqla.unit.attempt": 1,
    }


@on_deferring
@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_that_fails_is_an_error(database: Database, backend: Backend, sent: Sent, kind: str) -> None:
    """The span of the COMMIT names the exception; the ROLLBACK after it is none."""
    sent.instrument(database)
    await Call(sent.outside(application(database, kind, owner_id=NO_OWNER)), http_scope("/orders", "POST"))()
    commit = sent.ours()[0]
    assert commit.name.startswith("COMMIT ")
    assert commit.status.status_code is StatusCode.ERROR
    assert "IntegrityError" in str(commit.status.description)
    assert commit.attributes[error_attributes.ERROR_TYPE] == ("23503" if backend.is_postgresql else "IntegrityError")
    assert commit.attributes["asgi_sqla.unit.outcome"] == "failed"
    assert [one.status.status_code for one in sent.ours()[1:]] in ([], [StatusCode.UNSET])
    (counted,) = sent.points("asgi_sqla.units")
    assert dict(counted.attributes) == {"asgi_sqla.unit.kind": "request", "asgi_sqla.unit.outcome": "failed"}


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_in_doubt_is_an_error(database: Database, backend: Backend, sent: Sent, kind: str) -> None:
    """The connection is lost with the COMMIT."""
    sent.instrument(database)
    event.listen(engine_of(database, kind), "commit", lose_network)
    await Call(sent.outside(application(database, kind)), http_scope("/orders", "POST"))()
    commit = sent.ours()[0]
    assert commit.name.startswith("COMMIT ")
    assert commit.status.status_code is StatusCode.ERROR
    assert commit.attributes["asgi_sqla.unit.outcome"] == "in doubt"


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
async def test_a_commit_without_an_answer(
    backend: Backend, sent: Sent, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled request waits for a bounded time; then its COMMIT is an error, below the span of the request."""
    monkeypatch.setattr(cancellation, "CANCELLED_LIMIT", 0.3)
    monkeypatch.setattr(cancellation, "CUT_LIMIT", 0.3)
    with dark(backend) as (proxy, url):
        database = Database(url)
        sent.instrument(database)
        event.listen(engine_of(database, kind), "commit", lambda _connection: proxy.go_dark("answers"))
        call = Call(sent.outside(application(database, kind)), http_scope("/", "POST"))
        task = asyncio.create_task(call())
        await until(lambda: proxy.is_dark)
        task.cancel()
        await asyncio.wait([task])
        proxy.let_through()
        await database.async_dispose()
    assert sent.tree()[:2] == [("POST", None), ("COMMIT", "POST")]
    commit = sent.ours()[0]
    assert commit.status.status_code is StatusCode.ERROR
    assert commit.attributes["asgi_sqla.unit.outcome"] == "in doubt"
    assert error_attributes.ERROR_TYPE in commit.attributes


@on_one
@pytest.mark.parametrize("kind", KINDS)
async def test_every_attempt_has_a_span(database: Database, backend: Backend, sent: Sent, kind: str) -> None:
    """A retried request has one ROLLBACK and one COMMIT below the same span, and counts as one retry."""
    sent.instrument(database)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, kind, name="tea")
        if current_unit().attempt == 1:
            raise OperationalError("INSERT", {}, SerializationError("refused"))
        await respond(send, 201)

    call = await Call(sent.outside(SQLAlchemyMiddleware(app, database, retries=1)), http_scope("/", "POST"))()
    assert (call.status, backend.names()) == (201, ["tea"])
    assert sent.tree() == [("POST", None), ("ROLLBACK", "POST"), ("COMMIT", "POST")]
    assert [one.attributes["asgi_sqla.unit.attempt"] for one in sent.ours()] == [1, 2]
    assert [point.value for point in sent.points("asgi_sqla.retries")] == [1]
    assert [point.value for point in sent.points("asgi_sqla.units")] == [1]
    ended, committed = sorted(sent.points("db.client.operation.duration"), key=lambda one: one.attributes[OPERATION])
    assert (ended.count, committed.count) == (1, 1)


class SerializationError(Exception):
    """An error of a driver that is worth a retry."""

    sqlstate = pgcode = "40001"


OPERATION = db_attributes.DB_OPERATION_NAME


@pytest.mark.parametrize("where", ["task", "thread", "plain"])
async def test_a_scope_takes_the_span_around_it(sqlite: Backend, sent: Sent, where: str) -> None:
    """In a task, in a worker thread and in plain code, also when the span inside the scope has ended."""
    database = Database(sqlite.url)
    sent.instrument(database)

    def span(name: str) -> Any:
        return sent.tracer.start_as_current_span(name)

    def plain() -> None:
        with span("nightly"), session_scope(database) as session, span("inner"):
            session.add(Item(name="tea"))

    async def task() -> None:
        with span("nightly"):
            async with session_scope(database) as session:
                with span("inner"):
                    session.add(Item(name="tea"))

    if where == "task":
        await asyncio.create_task(task())
    elif where == "thread":
        await asyncio.to_thread(plain)
    else:
        await asyncio.to_thread(lambda: threading_run(plain))
    assert sent.tree() == [("nightly", None), ("inner", "nightly"), ("COMMIT", "nightly")]
    await database.async_dispose()


def threading_run(function: Any) -> None:
    """Run a function in a thread that has no context of ours."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@on_one
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["cancelled", "cancelled twice"])
async def test_the_parent_of_a_cancelled_request(
    database: Database, backend: Backend, sent: Sent, kind: str, how: str
) -> None:
    """It is cancelled while it commits: the span is that of the request, though a thread or another task ended it."""
    sent.instrument(database)
    trouble = Trouble(backend, "commit", how)
    trouble.watch(engine_of(database, kind))
    await trouble.suffer(Call(sent.outside(application(database, kind)), http_scope("/", "POST")))
    assert sent.tree() == [("POST", None), ("COMMIT", "POST")]
    assert backend.names() == ["tea"]


async def test_callbacks_and_messages_have_spans_too(sqlite: Backend, sent: Sent) -> None:
    """A callback's unit is a unit of its own, below the same span; so is each message of a websocket."""
    database = Database(sqlite.url)
    sent.instrument(database)

    async def note() -> None:
        database.async_session.add(Item(name="note"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for name in ("tea", "milk"):
            await receive()
            database.async_session.add(Item(name=name))
            if name == "tea":
                current_unit().on_commit(note)
        await receive()

    messages: list[Any] = [{"type": "websocket.connect"}, *[{"type": "websocket.receive", "text": "x"}] * 2]
    messages.append({"type": "websocket.disconnect", "code": 1000})

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        """Accept everything."""

    socket = {**http_scope("/chat"), "type": "websocket", "subprotocols": []}
    await sent.outside(SQLAlchemyMiddleware(app, database))(socket, receive, send)
    root = sent.tree()[0][0]
    assert sent.tree() == [(root, None), *[("COMMIT", root)] * 3]
    kinds = [one.attributes["asgi_sqla.unit.kind"] for one in sent.ours()]
    assert sorted(kinds) == ["callback", "message", "message"]
    await database.async_dispose()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_no_span_where_nothing_was_sent(database: Database, sent: Sent, kind: str, read_only: bool) -> None:
    """A session that was not used, and a read-only unit, end without COMMIT or ROLLBACK."""
    sent.instrument(database)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if read_only:
            await execute(database, kind, "SELECT 1")
        else:
            assert (database.session.is_active, database.async_session.is_active) == (True, True)
        await respond(send)

    await Call(sent.outside(SQLAlchemyMiddleware(app, database, read_only={"GET"})), http_scope())()
    assert sent.tree() == [("GET", None)]


async def test_the_numbers_of_the_pools(database: Database, backend: Backend, sent: Sent, global_db: Database) -> None:
    """They are read when somebody asks; those of an engine without a pool, or of no database any more, are not sent."""
    sent.instrument(database, global_db, Database(engine=create_engine("sqlite://", poolclass=NullPool)))
    async with session_scope(database) as session:
        await session.execute(text("SELECT 1"))
        used = {point.attributes["db.client.connection.state"]: point for point in sent.points(COUNT)}
        assert {state: point.value for state, point in used.items()} == {"used": 1, "idle": 0}
    idle = {point.attributes["db.client.connection.state"]: point.value for point in sent.points(COUNT)}
    assert idle == {"used": 0, "idle": 1}
    name = used["used"].attributes["db.client.connection.pool.name"]
    assert name.endswith(f"{backend.witness.url.database} write async")
    for metric, value in ((MOST, 15), (KEPT, 5), (pool_metrics.DB_CLIENT_CONNECTION_PENDING_REQUESTS, 0)):
        assert [(point.value, point.attributes["db.client.connection.pool.name"]) for point in sent.points(metric)] == [
            (value, name)
        ]
    for metric in (pool_metrics.DB_CLIENT_CONNECTION_USE_TIME, pool_metrics.DB_CLIENT_CONNECTION_WAIT_TIME):
        (point,) = sent.points(metric)
        assert (point.count, point.attributes["db.client.connection.pool.name"]) == (1, name)


COUNT, MOST = pool_metrics.DB_CLIENT_CONNECTION_COUNT, pool_metrics.DB_CLIENT_CONNECTION_MAX
KEPT = pool_metrics.DB_CLIENT_CONNECTION_IDLE_MAX


async def test_the_duration_of_an_end(sqlite: Backend, sent: Sent) -> None:
    """It is that of the span, in seconds, in the buckets of the conventions."""
    database = Database(sqlite.url)
    sent.instrument(database)
    await Call(application(database, "async"), http_scope("/", "POST"))()
    (span,), (point,) = sent.ours(), sent.points(db_metrics.DB_CLIENT_OPERATION_DURATION)
    assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
    assert point.sum == pytest.approx((span.end_time - span.start_time) / 1e9, abs=1e-6)
    assert dict(point.attributes) == {
        db_attributes.DB_SYSTEM_NAME: "sqlite",
        db_attributes.DB_NAMESPACE: backend_name(sqlite),
        db_attributes.DB_OPERATION_NAME: "COMMIT",
    }
    await database.async_dispose()


def backend_name(backend: Backend) -> str:
    """Return what the URL calls the database."""
    return str(backend.witness.url.database)


def test_a_database_that_is_gone_is_not_kept_alive(sqlite: Backend, sent: Sent) -> None:
    """The numbers of its pools end with it."""
    database = Database(sqlite.url)
    sent.instrument(database)
    with session_scope(database) as session:
        session.execute(text("SELECT 1"))
    assert len(sent.points(COUNT)) == 2
    database.dispose()
    del database, session
    import gc

    gc.collect()
    assert sent.points(COUNT) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+asyncpg://u@db:5433/shop", ("postgresql", "shop", "db", 5433)),
        ("postgresql+psycopg://u:***@db:5432/shop", ("postgresql", "shop", "db", None)),
        ("postgresql:///shop?host=/run/pg&port=5433", ("postgresql", "shop", "/run/pg", 5433)),
        ("postgresql:///shop?host=one:5433&host=two:5433", ("postgresql", "shop", None, None)),
        ("mysql+asyncmy://u@db:3307/shop", ("mysql", "shop", "db", 3307)),
        ("mariadb+pymysql://u@db/shop", ("mariadb", "shop", "db", None)),
        ("mssql+pyodbc://u@db/shop", ("microsoft.sql_server", "shop", "db", None)),
        ("oracle+oracledb://u@db/?service_name=x", ("oracle.db", None, "db", None)),
        ("sqlite:///shop.db", ("sqlite", "shop.db", None, None)),
        ("duckdb:///shop.db", ("other_sql", "shop.db", None, None)),
        ("no URL", ("other_sql", None, None, None)),
    ],
)
def test_what_a_url_says(url: str, said: tuple[Any, ...]) -> None:
    """The names are those of OpenTelemetry's own package, and the usual port is left out."""
    names = (
        *(db_attributes.DB_SYSTEM_NAME, db_attributes.DB_NAMESPACE),
        *(server_attributes.SERVER_ADDRESS, server_attributes.SERVER_PORT),
    )
    expected = {name: value for name, value in zip(names, said, strict=True) if value is not None}
    assert attributes.of_database(url) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["mysql", "mariadb"])
async def test_a_mariadb_is_told_from_a_mysql(sent: Sent, kind: str, scheme: str) -> None:
    """The server says what it is, whatever the URL calls it."""
    given = mariadb_url()
    if given is None:
        missing("no MariaDB: set ASGI_SQLA_TEST_MARIADB_URL, or start one on 127.0.0.1:3306")
    reports = Reports()
    database = Database(given.set(drivername=scheme), observe=[reports])
    sent.instrument(database)

    async with session_scope(database):
        await execute(database, kind, "SELECT 1")
    await database.async_dispose()

    *_, found = reports.only.databases
    (span,) = sent.ours()
    assert (found.dialect, found.system) == (scheme, "mariadb")
    assert span.attributes[db_attributes.DB_SYSTEM_NAME] == "mariadb"


def test_the_systems_are_known() -> None:
    """Each is a value that the conventions list."""
    from opentelemetry.semconv._incubating.attributes.db_attributes import DbSystemNameValues

    dialects = ("cockroachdb", "mariadb", "mssql", "mysql", "oracle", "postgresql", "sqlite", "other")
    ours = {attributes.of_database(f"{one}://h/x")[db_attributes.DB_SYSTEM_NAME] for one in dialects}
    assert ours <= {one.value for one in DbSystemNameValues}


@pytest.mark.parametrize("wrong", ["sqlite://", None, Database, "postgresql://shop:s3cret@localhost/shop"])
def test_a_wrong_argument_says_what_to_write(wrong: Any) -> None:
    """It is named without a password, and nothing is instrumented."""
    fine = Database("sqlite://")
    with pytest.raises(ConfigurationError, match=r"write instrument\(db\)") as raised:
        instrument(fine, wrong)
    assert "s3cret" not in str(raised.value)
    instrument(fine)
    with pytest.raises(ConfigurationError, match="instrumented already"):
        instrument(fine)


@pytest.mark.parametrize("name", ["tracer_provider", "meter_provider"])
@pytest.mark.parametrize("wrong", ["otlp", 5, TracerProvider, Database("postgresql://shop:s3cret@localhost/shop")])
def test_a_wrong_provider_says_what_to_write(name: str, wrong: Any) -> None:
    """It is named without a password."""
    with pytest.raises(ConfigurationError, match=rf"^{name}=.* is no (Tracer|Meter)Provider; write") as raised:
        instrument(Database("sqlite://"), **{name: wrong})
    assert "s3cret" not in str(raised.value)


LATER = """
import asyncio, sys
from opentelemetry import metrics, trace
from asgi_sqla import Database, session_scope
from asgi_sqla.telemetry import instrument
from sqlalchemy import text
db = Database(sys.argv[1])
instrument(db)
def run():
    with session_scope(db) as session:
        session.execute(text('SELECT 1'))
run()  # nothing is sent, and nothing breaks
assert "opentelemetry.sdk" not in sys.modules
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
metrics.set_meter_provider(MeterProvider([reader]))
run()
(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
print(len(exporter.get_finished_spans()), scope.scope.name, len(scope.metrics))
"""


def test_the_sdk_may_come_later(sqlite: Backend) -> None:
    """Without one nothing is sent; the global one is used as soon as it is set."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATER, sqlite.url], capture_output=True, text=True, check=False
    )
    assert (ran.stderr, ran.stdout.split()) == ("", ["1", "asgi_sqla", "8"])


async def test_the_copy_of_a_test_is_measured_too(sqlite: Backend, sent: Sent) -> None:
    """Its engines are others, and end transactions of their own."""
    database = Database(sqlite.url)
    sent.instrument(database)
    async with rolled_back(database, mode="copy"), session_scope(database) as session:
        session.add(Item(name="tea"))
    assert [one.name.partition(" ")[0] for one in sent.ours()] == ["COMMIT"]
    await database.async_dispose()
