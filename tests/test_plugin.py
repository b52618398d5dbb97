"""The pytest plugin: found without configuration, with each runner of coroutines, and nothing is left behind."""

from __future__ import annotations

import sys
import textwrap
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.databases import Backend
from support.services import missing

pytest_plugins = ["pytester"]

SHOP = """
    from sqlalchemy import func, select
    from support.databases import Item
    from asgi_sqla import Database, session_scope

    db = Database({url!r})

    async def add_async():
        async with session_scope(db) as session:
            session.add(Item(name="a"))
            await session.flush()
            return await session.scalar(select(func.count()).select_from(Item))

    def add():
        with session_scope(db) as session:
            session.add(Item(name="a"))
            session.flush()
            return session.scalar(select(func.count()).select_from(Item))
"""
COPIES = True
"""The databases are copied, which their witness must not prevent."""
INI = """
    [pytest]
    addopts = -p no:cacheprovider --strict-markers
    asyncio_default_fixture_loop_scope = function
    asyncio_default_test_loop_scope = {loops}
    asgi_sqla_database = shop:db
    filterwarnings = error
    pythonpath = . {support}
"""
ASYNCIO = """
    import pytest, shop

    @pytest.mark.asyncio
    @pytest.mark.parametrize("time", range(3))
    async def test_asyncio(rolled_back_database, time):
        assert await shop.add_async() == 1
"""
ANYIO = """
    import pytest, shop

    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    @pytest.mark.anyio
    @pytest.mark.parametrize("time", range(3))
    async def test_anyio(rolled_back_database, time):
        assert await shop.add_async() == 1
"""
SYNC = """
    import pytest, shop

    @pytest.mark.parametrize("time", range(3))
    def test_sync(rolled_back_database, time, assert_statements):
        with assert_statements(exactly=2):
            assert shop.add() == 1

    @pytest.mark.asgi_sqla(mode="copy")
    @pytest.mark.parametrize("time", range(2))
    def test_copy(rolled_back_database, time):
        assert shop.add() == 1
"""
UNITTEST = """
    import unittest, shop
    from asgi_sqla.testing import rolled_back

    class Plain(unittest.TestCase):
        def setUp(self):
            self.enterContext(rolled_back(shop.db))

        def test_one(self):
            self.assertEqual(shop.add(), 1)

        def test_two(self):
            self.assertEqual(shop.add(), 1)

    class Isolated(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            await self.enterAsyncContext(rolled_back(shop.db))

        async def test_one(self):
            self.assertEqual(await shop.add_async(), 1)

        async def test_two(self):
            self.assertEqual(await shop.add_async(), 1)
"""


def run(pytester: pytest.Pytester, backend: Backend, source: str, *arguments: str, loops: str = "function") -> object:
    """Run the tests of ``source`` in a separate pytest; return how many had which outcome."""
    url = str(backend.url)
    pytester.makepyfile(shop=textwrap.dedent(SHOP).format(url=url), test_it=textwrap.dedent(source))
    pytester.makeini(textwrap.dedent(INI).format(support=Path(__file__).parent, loops=loops))
    ran = pytester.run(sys.executable, "-m", "pytest", *arguments)
    assert ran.stderr.lines == []
    return ran.parseoutcomes()


def test_it_is_found_by_itself() -> None:
    """The entry point leads to it."""
    (found,) = (one for one in entry_points(group="pytest11") if one.name == "asgi-sqla")
    assert found.value == "asgi_sqla.testing.plugin"


@pytest.mark.parametrize("loops", ["function", "session"])
def test_pytest_asyncio(pytester: pytest.Pytester, backend: Backend, loops: str) -> None:
    """It works with a loop for each test, and with one for all."""
    assert run(pytester, backend, ASYNCIO, loops=loops) == {"passed": 3}
    assert backend.names() == []


def test_anyio(pytester: pytest.Pytester, backend: Backend) -> None:
    """It works with the plugin that comes with anyio."""
    assert run(pytester, backend, ANYIO) == {"passed": 3}
    assert backend.names() == []


def test_unittest(pytester: pytest.Pytester, backend: Backend) -> None:
    """The plain functions work in both kinds of test case."""
    assert run(pytester, backend, UNITTEST) == {"passed": 4}
    assert backend.names() == []


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_sync_tests(pytester: pytest.Pytester, backend: Backend, workers: tuple[str, ...]) -> None:
    """They work in one process, and each worker of xdist has its own copy."""
    if workers and find_spec("xdist") is None:
        missing("pytest-xdist is not installed")
    assert run(pytester, backend, SYNC, *workers) == {"passed": 5}
    assert backend.names() == []


def test_a_wrong_name_says_what_to_write(pytester: pytest.Pytester, sqlite: Backend) -> None:
    """The error comes before any test runs on something else."""
    pytester.makepyfile(test_it="def test_it(rolled_back_database): ...")
    pytester.makeini("[pytest]\nasgi_sqla_database = shop.main:db\nasyncio_default_fixture_loop_scope = function")
    ran = pytester.run(sys.executable, "-m", "pytest")
    ran.stdout.fnmatch_lines(["*asgi_sqla_database = 'shop.main:db' cannot be imported*write asgi_sqla_database =*"])


CHOOSING = """
    import asyncio, pytest, shop

    def both_kinds():
        assert shop.add() == 1
        with pytest.raises(Exception):  # the second row has the same name
            asyncio.run(shop.add_async())

    def test_the_configuration(rolled_back_database):
        both_kinds()

    @pytest.mark.asgi_sqla("transaction")
    def test_the_marker(rolled_back_database):
        assert shop.add() == 1
        with pytest.raises(Exception, match="used after a Session"):
            asyncio.run(shop.add_async())

    @pytest.mark.asgi_sqla("copy", "transaction")
    def test_a_wrong_marker(rolled_back_database):
        ...
"""


def test_the_mode_is_configured_or_marked(pytester: pytest.Pytester, sqlite: Backend) -> None:
    """A marker counts before ``asgi_sqla_mode``; a wrong one is refused."""
    pytester.makepyfile(shop=textwrap.dedent(SHOP).format(url=sqlite.url), test_it=textwrap.dedent(CHOOSING))
    pytester.makeini(
        textwrap.dedent(INI).format(support=Path(__file__).parent, loops="function") + "asgi_sqla_mode = copy"
    )
    ran = pytester.run(sys.executable, "-m", "pytest")

    assert ran.parseoutcomes() == {"passed": 2, "errors": 1}
    ran.stdout.fnmatch_lines(['*test_a_wrong_marker: write @pytest.mark.asgi_sqla(mode="copy"), or "transaction"*'])
    assert sqlite.names() == []
