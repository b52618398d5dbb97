"""URLs: from the one that a user wrote to the one that each kind of engine needs."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import URL, make_url
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from asgi_sqla.engine.showing import shown
from asgi_sqla.engine.urls import BACKENDS, Target, parse, translate
from asgi_sqla.errors import ConfigurationError, MissingDriverError


def everything(_module: str) -> bool:
    """Stand for a machine with every driver."""
    return True


def only(*modules: str) -> Any:
    """Stand for a machine with only these modules."""
    return modules.__contains__


def to(url: str, kind: str, installed: Any = everything) -> Target:
    """Return the target of the engine of ``kind``."""
    return translate(parse(url), asynchronous=kind == "async", installed=installed)


def text(target: Target) -> str:
    """Return the URL of a target with its password."""
    return target.url.render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("url", "sync", "asynchronous"),
    [
        ("postgresql://h/d", "postgresql+psycopg://h/d", "postgresql+asyncpg://h/d"),
        ("postgres://u:p@h:5433/d", "postgresql+psycopg://u:p@h:5433/d", "postgresql+asyncpg://u:p@h:5433/d"),
        ("postgresql+asyncpg://h/d", "postgresql+psycopg://h/d", "postgresql+asyncpg://h/d"),
        ("postgres+asyncpg://h/d", "postgresql+psycopg://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg_async://h/d", "postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg2://h/d", "postgresql+asyncpg://h/d"),
        ("mysql://h/d", "mysql+mysqldb://h/d", "mysql+asyncmy://h/d"),
        ("mysql+pymysql://h/d?charset=utf8mb4", "mysql+pymysql://h/d?charset=utf8mb4", None),
        ("mysql+aiomysql://h/d", "mysql+mysqldb://h/d", "mysql+aiomysql://h/d"),
        ("mariadb+asyncmy://h/d", "mariadb+mysqldb://h/d", "mariadb+asyncmy://h/d"),
        ("oracle://h/d", "oracle+oracledb://h/d", "oracle+oracledb://h/d"),
        ("oracle+oracledb_async://h/d", "oracle+oracledb://h/d", "oracle+oracledb://h/d"),
        ("mssql://h/d?driver=x", "mssql+pyodbc://h/d?driver=x", "mssql+aioodbc://h/d?driver=x"),
        ("mssql+aioodbc://h/d", "mssql+pyodbc://h/d", "mssql+aioodbc://h/d"),
        ("sqlite:///app.db", "sqlite+pysqlite:///app.db", "sqlite+aiosqlite:///app.db"),
        ("sqlite+aiosqlite:///app.db?timeout=9", "sqlite+pysqlite:///app.db?timeout=9", None),
    ],
)
def test_each_kind_of_engine_gets_its_driver(url: str, sync: str, asynchronous: str | None) -> None:
    """A suitable driver is kept, the other kind uses the best one, and the rest of the URL stays."""
    assert to(url, "sync") == (make_url(sync), {})
    if asynchronous is not None:
        assert to(url, "async") == (make_url(asynchronous), {})


@pytest.mark.parametrize(
    ("installed", "kind", "url"),
    [
        (["psycopg"], "async", "postgresql+psycopg://h/d"),
        (["psycopg2"], "sync", "postgresql+psycopg2://h/d"),
        (["asyncpg", "psycopg"], "async", "postgresql+asyncpg://h/d"),
        (["psycopg", "psycopg2"], "sync", "postgresql+psycopg://h/d"),
    ],
)
def test_a_driver_that_is_installed_is_taken(installed: list[str], kind: str, url: str) -> None:
    """It is the first installed driver of its kind."""
    assert text(to("postgresql://h/d", kind, only(*installed))) == url


def test_a_module_not_named_like_its_driver_is_found() -> None:
    """SQLAlchemy's ``mysqldb`` is the module ``MySQLdb``, its ``pysqlite`` is ``sqlite3``."""
    assert text(to("mysql://h/d", "sync", only("MySQLdb"))) == "mysql+mysqldb://h/d"
    assert text(to("sqlite:///d", "sync", only("sqlite3"))) == "sqlite+pysqlite:///d"


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("postgresql://h/d", "sync", "needs psycopg or psycopg2 as its sync driver"),
        ("postgresql://h/d", "async", "needs asyncpg or psycopg as its async driver"),
        ("postgresql+asyncpg://h/d", "async", "needs asyncpg as its async driver"),
        ("mysql://h/d", "async", "needs asyncmy or aiomysql as its async driver"),
        ("mssql://h/d", "sync", "needs pyodbc as its sync driver"),
    ],
)
def test_a_missing_driver_is_named_with_its_extra(url: str, kind: str, message: str) -> None:
    """The error is also an ImportError, and says what to install."""
    extra = BACKENDS[make_url(url).get_backend_name()].extra
    with pytest.raises(MissingDriverError, match=message) as caught:
        to(url, kind, only())
    assert isinstance(caught.value, ImportError)
    assert f"pip install 'asgi-sqla[{extra}]'" in str(caught.value)


@pytest.mark.parametrize(
    ("query", "arguments", "left"),
    [
        ("sslmode=require", {}, {"ssl": "require"}),
        ("sslmode=verify-full", {}, {"ssl": "verify-full"}),
        ("ssl=true", {}, {"ssl": "require"}),
        ("ssl=False", {}, {"ssl": "disable"}),
        ("connect_timeout=10", {"timeout": 10.0}, {}),
        ("timeout=0.5", {"timeout": 0.5}, {}),
        ("command_timeout=3", {"command_timeout": 3.0}, {}),
        ("statement_cache_size=0", {"statement_cache_size": 0}, {}),
        ("application_name=shop", {"server_settings": {"application_name": "shop"}}, {}),
        ("options=-csearch_path%3Dshop", {"server_settings": {"search_path": "shop"}}, {}),
        (
            "options=-c%20search_path%3Da,b%20--statement_timeout%3D5s&application_name=shop",
            {"server_settings": {"search_path": "a,b", "statement_timeout": "5s", "application_name": "shop"}},
            {},
        ),
        ("host=/run/pg&user=me", {}, {"host": "/run/pg", "user": "me"}),
        ("host=a:1&host=b:2", {}, {"host": ("a:1", "b:2")}),
        ("target_session_attrs=read-write", {}, {"target_session_attrs": "read-write"}),
    ],
)
def test_options_of_libpq_are_translated_for_asyncpg(query: str, arguments: Any, left: Any) -> None:
    """The driver asyncpg gets its own names, whether the URL was written for libpq or for asyncpg."""
    for name in ("postgresql", "postgresql+asyncpg", "postgresql+psycopg2"):
        target = to(f"{name}://h/d?{query}", "async")
        assert (dict(target.url.query), target.connect_args) == (left, arguments)


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("ssl=require", {"sslmode": "require"}),
        ("ssl=true", {"sslmode": "require"}),
        ("ssl=false", {"sslmode": "disable"}),
        ("sslmode=prefer", {"sslmode": "prefer"}),
        ("timeout=10", {"connect_timeout": "10"}),
        ("timeout=0.3", {"connect_timeout": "1"}),
        ("command_timeout=1.5", {"options": "-c statement_timeout=1500"}),
        ("options=-c%20a%3Db&command_timeout=1", {"options": "-c a=b -c statement_timeout=1000"}),
        ("prepared_statement_cache_size=0&statement_cache_size=0", {}),
        ("application_name=shop&sslrootcert=/ca.pem", {"application_name": "shop", "sslrootcert": "/ca.pem"}),
    ],
)
def test_options_of_asyncpg_are_translated_for_libpq(query: str, left: Any) -> None:
    """The library libpq gets its own names, whether the URL was written for asyncpg or for libpq."""
    for name in ("postgresql", "postgresql+asyncpg"):
        target = to(f"{name}://h/d?{query}", "sync")
        assert (dict(target.url.query), target.connect_args) == (left, {})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("keepalives=1", "asyncpg does not accept 'keepalives'; leave it out, or install psycopg"),
        ("sslrootcert=/ca.pem", "asyncpg does not accept 'sslrootcert'"),
        ("options=-d%205", "options='-d 5' cannot be translated for asyncpg; write only '-c name=value' in it"),
        ("options=a&options=b", "cannot be translated for asyncpg"),
        ("connect_timeout=soon", "timeout='soon' is not a number"),
        ("statement_cache_size=1.5", "statement_cache_size='1.5' is not a number"),
    ],
)
def test_an_option_that_asyncpg_does_not_have_is_an_error(query: str, message: str) -> None:
    """Nothing of a URL is dropped silently, and the error says what to write."""
    with pytest.raises(ConfigurationError, match=message):
        to(f"postgresql://u:s3cret@h/d?{query}", "async")


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("postgresql+pg8000://h/d", "postgresql+asyncpg://h/d"),
        ("mysql+mysqlconnector://h/d", "mysql+asyncmy://h/d"),
        ("sqlite+pysqlcipher:///d", "sqlite+aiosqlite:///d"),
    ],
)
def test_a_driver_not_in_the_table_serves_its_own_kind(url: str, other: str) -> None:
    """It is used as written; the other kind of engine gets the best driver of that database."""
    assert (text(to(url, "sync")), text(to(url, "async"))) == (url, other)


@pytest.mark.parametrize(
    ("url", "kind", "package"),
    [
        ("postgresql+psycopg2://h/d", "sync", "psycopg2-binary"),
        ("mysql+mysqldb://h/d", "sync", "mysqlclient"),
        ("mysql+aiomysql://h/d", "async", "aiomysql"),
        ("mysql+pymysql://h/d", "sync", r"'asgi-sqla\[mysql\]'"),
    ],
)
def test_a_missing_driver_is_named_with_what_brings_it(url: str, kind: str, package: str) -> None:
    """No extra brings a driver that has a better one."""
    with pytest.raises(MissingDriverError, match=rf"write: pip install {package}$"):
        to(url, kind, only())


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a third-party dialect under its plain name only; return the name."""
    module = ModuleType("toy_dialect")
    module.ToyDialect = type(  # type: ignore[attr-defined]  # a module made here
        "ToyDialect", (SQLiteDialect_pysqlite,), {"name": "toy", "driver": "toydriver"}
    )
    monkeypatch.setitem(sys.modules, "toy_dialect", module)
    monkeypatch.setitem(registry.impls, "toy", lambda: module.ToyDialect)
    return "toy"


def test_a_third_party_dialect_keeps_its_url(toy: str) -> None:
    """Many are registered without the name of a driver, so none is added."""
    assert text(to("toy://h/d?a=b", "sync")) == "toy://h/d?a=b"
    with pytest.raises(ConfigurationError, match="no async driver is known for 'toy'; pass async_engine="):
        to("toy://h/d", "async")


@pytest.mark.parametrize("url", ["nosql://u:s3cret@h/d", "postgresql+nodriver://u:s3cret@h/d", "sqlite++://u:s3cret@/"])
def test_an_unknown_dialect_is_named(url: str) -> None:
    """The error names it and the known ones, and shows no password."""
    with pytest.raises(ConfigurationError) as caught:
        parse(url)
    message = str(caught.value)
    assert f"SQLAlchemy has no dialect {make_url(url).drivername!r}" in message
    assert "postgresql, sqlite" in message
    assert "s3cret" not in message


@pytest.mark.parametrize("url", ["app.db", "u:s3cret@h/d", "postgresql://u:s3cret@h:port/d", "sqlite:/s3cret", 42, "x"])
def test_what_is_no_url_is_refused_unseen(url: Any) -> None:
    """It may contain a password, so it is not shown, even in a chained error."""
    with pytest.raises(ConfigurationError, match="url is not a database URL") as caught:
        parse(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "visible"),
    [
        ("postgresql://u:s3cret@h/d", "postgresql://u:***@h/d"),
        ("postgresql:///d?user=u&password=s3cret", "postgresql:///d?password=...&user=u"),
        ("mysql://h/d?passwd=s3cret&charset=utf8", "mysql://h/d?charset=utf8&passwd=..."),
        ("mssql:///?odbc_connect=PWD%3Ds3cret", "mssql:///?odbc_connect=..."),
        ("postgresql://h/d?sslpassword=s3cret&passfile=x", "postgresql://h/d?passfile=x&sslpassword=..."),
    ],
)
def test_a_password_is_never_shown(url: str, visible: str) -> None:
    """This holds for one before the host and for one in the query."""
    assert shown(parse(url)) == visible


PLAIN = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
URLS = st.builds(
    URL.create,
    st.sampled_from(["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"]),
    username=PLAIN,
    password=PLAIN,
    host=st.from_regex(r"[a-z]{1,9}(\.[a-z]{1,5})?", fullmatch=True),
    port=st.none() | st.integers(1, 65535),
    database=st.from_regex(r"[A-Za-z_]{1,9}", fullmatch=True),
    query=st.fixed_dictionaries(
        {}, optional={"sslmode": st.sampled_from(["disable", "prefer", "require"]), "application_name": PLAIN}
    ),
)


@settings(deadline=None)
@given(URLS, st.booleans())
def test_the_way_there_and_back_loses_nothing(url: URL, asynchronous: bool) -> None:
    """User, host and database stay the same, and so do the settings after translation back."""
    there = translate(parse(url), asynchronous=asynchronous, installed=everything)
    back = translate(there.url, asynchronous=False, installed=everything).url
    settings = there.connect_args.get("server_settings", {})
    same = ("username", "password", "host", "port", "database")
    assert [getattr(there.url, name) for name in same] == [getattr(url, name) for name in same]
    assert {**back.query, **settings} == url.query


@settings(deadline=None)
@given(URLS, st.booleans())
def test_translating_twice_is_translating_once(url: URL, asynchronous: bool) -> None:
    """A URL that suits its engine is not changed."""
    once = translate(parse(url), asynchronous=asynchronous, installed=everything).url
    assert translate(once, asynchronous=asynchronous, installed=everything).url == once


NAMES = st.from_regex(r"[a-z][a-z_.]{0,9}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["C"]), max_size=12)


@settings(deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_setting_in_options_reaches_asyncpg(settings: dict[str, str]) -> None:
    """Values may contain blanks and backslashes, escaped as libpq wants them."""
    escape = str.maketrans({"\\": r"\\"} | {blank: f"\\{blank}" for blank in BLANKS})
    options = " ".join(f"-c {name}={value.translate(escape)}" for name, value in settings.items())
    url = URL.create("postgresql", query={"options": options})
    target = translate(url, asynchronous=True, installed=everything)
    assert target.connect_args.get("server_settings", {}) == settings


BLANKS = [character for character in map(chr, range(sys.maxunicode)) if character.isspace()]


@settings(deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"[a-z+]{1,12}:/{0,3}[^ ]{0,20}"))
def test_any_text_is_a_url_or_a_clear_error(url: str) -> None:
    """The only error is a ConfigurationError."""
    try:
        parsed = parse(url)
    except ConfigurationError:
        return
    assert parsed.get_backend_name() == parsed.get_dialect().name
