"""No message, log line or repr shows a password, wherever a URL was passed by mistake; no path forges a log line."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import SecretStr
from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Mapped, Session, mapped_column
from support.asgi import App, Call, Message, http_scope, respond
from support.databases import NO_OWNER, Backend, Item
from test_every_argument import CALLEES, Callee

from asgi_sqla import Database, SQLAlchemyMiddleware, UnitOfWorkEndedError, current_unit, session_scope
from asgi_sqla.cli import main
from asgi_sqla.migrations import Migrations, lock
from asgi_sqla.models import Base
from asgi_sqla.settings import DatabaseSettings, database_from

PLAIN = "postgresql://shop:s3cret@db.internal/shop"
IN_QUERY = "postgresql://db.internal/shop?user=shop&password=s3cret"
NO_DIALECT = "nosql://shop:s3cret@db.internal/shop?sslpassword=s3cret"
BROKEN = "postgresql//shop:s3cret@db.internal"
URLS = (PLAIN, IN_QUERY, NO_DIALECT, BROKEN)


def ignored(url: object, *_arguments: object) -> None:
    """Get a URL."""


def wherever(url: str) -> Iterator[Any]:
    """Yield forms of a URL that users put in place of something else."""
    yield url
    yield url.encode()
    yield SecretStr(url)
    yield [url]
    yield {"url": url}
    yield {url: 1}
    yield {"pool_size": url}
    yield {"connect_args": url}
    yield {"isolation_level": url}
    yield {"class_": url}
    yield {"sqlalchemy": url}
    yield Path(url)
    yield functools.partial(ignored, url)
    if url != BROKEN:
        yield make_url(url)
        yield [make_url(url)]
        yield {"url": make_url(url)}
    if url in (PLAIN, IN_QUERY):
        engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
        yield engine
        yield [engine]
        yield create_async_engine(engine.url)
        yield Database(url)


def said(call: Callable[[], object]) -> str:
    """Return everything that a call says: the value's repr, or the error's traceback with its notes."""
    try:
        return repr(call())
    except Exception as exc:
        return "".join(traceback.format_exception_only(exc)) + repr(exc.__cause__)


ARGUMENTS = [(name, keyword) for name, callee in CALLEES.items() for keyword in callee.keywords]


@pytest.mark.parametrize(("name", "keyword"), ARGUMENTS)
@pytest.mark.usefixtures("global_db")
def test_no_argument_of_a_public_callable_shows_a_url(
    name: str, keyword: str, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds if the value is refused, and if it is accepted and printed."""
    monkeypatch.chdir(tmp_path)
    callee: Callee = CALLEES[name]
    shown = [
        message
        for url in URLS
        for value in wherever(url)
        if "s3cret" in (message := said(functools.partial(callee.call, **{keyword: value})))
    ]
    assert shown == []
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("url", URLS)
def test_a_model_whose_database_is_a_url_does_not_show_it(url: str) -> None:
    """The older systems accepted a URL there."""
    for value in wherever(url):
        message = said(functools.partial(ask, value))
        assert "s3cret" not in message


def ask(database: Any) -> object:
    """Look up a row of a model whose database is none of ours."""

    class Base2(Base):
        __abstract__ = True
        __database__ = database

    class Product(Base2):
        __tablename__ = f"product_{id(Base2)}"
        id: Mapped[int] = mapped_column(primary_key=True)

    return Product.get_one(id=1)


OPTIONS = [
    ("--target", PLAIN),
    ("--target", IN_QUERY),
    ("--target", "sqlite3://shop:s3cret@db.internal/shop"),
    ("--target", "sqlite3:s3cret@db"),
    ("--target", "conf:URL"),
    ("--target", "conf:PARSED"),
    ("--target", "conf:SETTINGS"),
    ("--target", "conf:ENGINE"),
    ("--location", PLAIN),
    ("--metadata", PLAIN),
    ("--metadata", "conf:URL"),
]
CONF = f"""
from sqlalchemy import create_engine, make_url
from asgi_sqla import Database
URL = {PLAIN!r}
PARSED = make_url({IN_QUERY!r})
SETTINGS = {{"url": URL}}
ENGINE = create_engine(PARSED.set(drivername="postgresql+psycopg"))
db = Database("sqlite://")
"""


@pytest.mark.parametrize("command", ["status", "init", "check"])
@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_the_command_line_does_not_show_a_url(
    option: str, value: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with one line and the exit code of a wrong argument, whichever option got the URL."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "conf", raising=False)
    (tmp_path / "conf.py").write_text(CONF)
    arguments = [] if option == "--target" else ["--target", "conf:db"]
    by_option = CliRunner().invoke(main, [*arguments, option, value, command])
    assert "s3cret" not in by_option.output + repr(by_option.exception)
    if option == "--target" and command != "init":
        by_variable = CliRunner().invoke(main, [command], env={"ASGI_SQLA_TARGET": value})
        assert (by_variable.output, by_variable.exit_code) == (by_option.output, by_option.exit_code)
    if command != "init" or "://" in value:
        assert by_option.exit_code == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    written = [path.read_text() for path in files if path.name != "conf.py"]
    assert not any("s3cret" in content for content in written)


def test_the_command_line_says_where_a_url_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL as the first option is the likeliest mistake."""
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(main, ["--target", PLAIN, "status"])
    assert ran.output.strip() == (
        "Error: a str (not shown, as it may hold a password) is a URL; put it in DATABASE_URL, as "
        "--target and --metadata are package.module:name"
    )


def test_settings_do_not_show_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds for pydantic's repr, for a wrong environment, and for the database made from them."""
    monkeypatch.setenv("DATABASE_URL", PLAIN)
    monkeypatch.setenv("DATABASE_READ_ONLY_URL", IN_QUERY)
    settings = DatabaseSettings()  # type: ignore[call-arg]
    assert "s3cret" not in repr(settings) + str(settings) + repr(database_from(settings))
    monkeypatch.setenv("DATABASE_POOL_SIZE", PLAIN)
    assert "s3cret" not in said(database_from)
    for wrong in ({"url": BROKEN}, {"url": PLAIN, "echo": PLAIN}, {"urls": PLAIN}, {"sqlalchemy": {"uri": PLAIN}}):
        assert "s3cret" not in said(functools.partial(database_from, wrong))


class Held(lock._OfSession):
    """A lock that another process holds."""

    def acquire(self) -> bool:
        """Return that another process holds it."""
        return False

    def release(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("url", [PLAIN, IN_QUERY])
def test_the_migration_lock_does_not_show_its_url(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the log line about waiting nor the error after it shows the password."""
    caplog.set_level(logging.INFO, "asgi_sqla")
    monkeypatch.setitem(lock._LOCKS, "sqlite", Held)
    engine = create_engine("sqlite://")
    engine.url = make_url(url)
    with engine.connect() as connection:
        message = said(functools.partial(wait_for, connection))
    assert "has held the migration lock of postgresql://" in message
    assert "waiting for the migration lock of postgresql://" in caplog.text
    assert "s3cret" not in message + caplog.text


def wait_for(connection: Connection) -> None:
    """Wait for the lock for zero seconds."""
    with lock.locked(connection, 0):
        raise NotImplementedError


@pytest.mark.parametrize("url", [PLAIN, IN_QUERY])
async def test_an_unreachable_database_is_reported_without_its_password(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The check at startup reports it to the server and to the log, and each object has a repr."""
    there = make_url(url).set(drivername="postgresql+psycopg", host="127.0.0.1", port=1)
    there = there.update_query_dict({"connect_timeout": "2"})
    database = Database(there)
    middleware = SQLAlchemyMiddleware(respond_to, database, check_on_startup=True)
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(events)

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(OperationalError) as raised:
        await middleware({"type": "lifespan"}, receive, send)
    printed = f"{database!r} {middleware!r} {Migrations(database, 'm')!r} {sent!r} {raised.value!r}"

    assert sent[0]["type"] == "lifespan.startup.failed"
    assert "s3cret" not in printed + caplog.text


async def respond_to(scope: Any, receive: Any, send: Any) -> None:
    """Answer."""
    await respond(send)


def test_a_replica_that_is_skipped_is_logged_without_its_password(
    sqlite: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names it by its URL."""
    replicas = [f"postgresql+psycopg://shop@127.0.0.1:1/shop?password=s3cret&connect_timeout={n}" for n in (2, 3)]
    database = Database("postgresql+psycopg://shop:s3cret@127.0.0.1:1/shop", read_only_url=replicas)
    with pytest.raises(Exception, match="connection"), session_scope(database, read_only=True) as session:
        session.connection()
    assert "is skipped for a while" in caplog.text
    assert "s3cret" not in caplog.text


# What a client writes into a path

FORGED = "/items\nERROR asgi_sqla: forged\r\n\x1b[31mred\x00\x85\u2028end"
"""A path as a server decodes it from %0A and similar codes."""


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return every line of ours that a handler would write, without tracebacks."""
    messages = [record.getMessage() for record in caplog.records if record.name == "asgi_sqla"]
    return [line for message in messages for line in message.splitlines() or [""]]


def is_plain(line: str) -> bool:
    """Return whether a line contains only text, for a terminal and for a reader of logs."""
    return line.isprintable()


def applications(database: Database) -> dict[str, App]:
    """Return applications that cause a log line about their request."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="a", owner_id=NO_OWNER))
        await respond(send, 201)

    async def given_up(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        database.async_session.add(Item(name="b"))
        await database.async_session.flush()

    async def committed(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="c"))
        await database.async_session.commit()
        await respond(send, 500)

    async def calling_back(scope: Any, receive: Any, send: Any) -> None:
        database.async_session.add(Item(name="d"))
        current_unit().on_commit(fail)
        await respond(send, 200)

    return {"mapped": failing, "given up": given_up, "committed before": committed, "callback": calling_back}


def fail() -> None:
    """Fail in a callback."""
    raise ValueError


@pytest.mark.parametrize("method", ["POST", "PO\nST"])
@pytest.mark.parametrize("name", ["mapped", "given up", "committed before", "callback"])
async def test_a_path_forges_no_line_of_the_log(
    sqlite: Backend, name: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything but printable text is escaped wherever a unit of work is named."""
    caplog.set_level(logging.DEBUG, "asgi_sqla")
    database = Database(sqlite.url)
    app = SQLAlchemyMiddleware(applications(database)[name], database, error_responses={IntegrityError: 409})
    await Call(app, http_scope(FORGED, method))()
    await database.async_dispose()

    found = lines(caplog)
    assert found != []
    assert [line for line in found if not is_plain(line)] == []
    assert [line for line in found if line.startswith("ERROR asgi_sqla")] == []
    assert any(r"/items\nERROR asgi_sqla: forged\r\n\x1b[31mred\x00\x85\u2028end" in line for line in found)


async def test_a_path_forges_no_line_of_an_error(sqlite: Backend) -> None:
    """Servers log errors that name a unit of work."""
    database = Database(sqlite.url)
    kept: list[Session] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(database.session)
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, database), http_scope(FORGED))()
    with pytest.raises(UnitOfWorkEndedError) as caught:
        kept[0].connection()
    database.dispose()
    assert is_plain(str(caught.value))


async def test_the_path_of_a_websocket_forges_no_line(sqlite: Backend) -> None:
    """The units of a websocket are named after its path too."""
    database = Database(sqlite.url)
    names: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        names.append(repr(current_unit()))

    scope = {"type": "websocket", "asgi": {"version": "3.0"}, "path": FORGED, "headers": []}
    await SQLAlchemyMiddleware(app, database)(scope, respond_to, respond_to)
    assert names == [
        r"<UnitOfWork WEBSOCKET /items\nERROR asgi_sqla: forged\r\n\x1b[31mred\x00\x85\u2028end open>",
    ]


def test_a_url_of_sqlalchemy_alone_is_shown_without_passwords() -> None:
    """The rest of the URL is shown, because it helps to find the mistake."""
    message = said(lambda: session_scope(URL.create("postgresql", "shop", "s3cret", "h")))  # type: ignore[arg-type]
    assert "database=postgresql://shop:***@h" in message
