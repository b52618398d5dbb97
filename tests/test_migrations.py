"""Migrations: what each command does in every state, and many processes at once."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from alembic.util import CommandError
from sqlalchemy import MetaData, create_engine, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from support.empty import KINDS
from support.migrating import Project, first_project, importable

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, WrongEventLoopError, session_scope
from asgi_sqla.migrations import (
    MigrateResult,
    MigrationError,
    MigrationLockError,
    Migrations,
    Status,
    exists_in_db,
    is_sqlite,
    manager,
)
from asgi_sqla.testing import rolled_back

PROCESSES = 8


@pytest.fixture(params=KINDS)
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Project]:
    """Return a project on each kind of database in turn, with the revision that creates its tables."""
    with first_project(request.param, tmp_path) as project:
        yield project


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Project]:
    """Return a project on SQLite."""
    with importable(tmp_path):
        project = Project(tmp_path, f"sqlite:///{tmp_path / 'shop.db'}")
        project.first()
        yield project
        project.migrations.database.dispose()


# The commands


def test_sync_creates_then_upgrades_then_has_nothing_to_do(project: Project) -> None:
    """And the state is what it did."""
    migrations = project.migrations
    found = [migrations.status(), migrations.migrate(), migrations.status(), migrations.migrate()]
    project.second()
    found += [migrations.status(), migrations.migrate(), migrations.status()]

    assert found == [
        Status.EMPTY,
        MigrateResult.CREATED,
        Status.UP_TO_DATE,
        MigrateResult.UP_TO_DATE,
        Status.UPGRADE_AVAILABLE,
        MigrateResult.UPGRADED,
        Status.UP_TO_DATE,
    ]
    assert project.columns() == ["id", "name", "age", "town"]
    assert (migrations.current(), migrations.latest()) == (("second",), ("second",))


def test_each_command_alone(project: Project) -> None:
    """The commands create, downgrade, upgrade and drop work by themselves."""
    migrations = project.migrations
    migrations.create()
    assert project.tables() == ["alembic_version", "customer", "purchase"]
    migrations.downgrade("base")
    assert (project.tables(), migrations.current()) == (["alembic_version"], ())
    migrations.upgrade()
    assert (project.tables()[1:], migrations.current()) == (["customer", "purchase"], ("first",))
    migrations.drop()
    assert (project.tables(), migrations.status()) == ([], Status.EMPTY)


async def test_each_command_has_an_async_twin(project: Project) -> None:
    """The twin has the same result."""
    migrations = project.migrations
    await migrations.async_create()
    assert await migrations.async_status() == Status.UP_TO_DATE
    await migrations.async_downgrade("base")
    await migrations.async_upgrade()
    assert (await migrations.async_current(), await migrations.async_latest()) == (("first",), ("first",))
    assert await migrations.async_migrate() == MigrateResult.UP_TO_DATE
    (path,) = await migrations.async_revision("third")
    assert path.read_text().startswith('"""third')
    path.unlink()
    await migrations.async_drop()
    assert project.tables() == []


ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "mariadb": "mariadb+asyncmy"}


def async_only(project: Project) -> Migrations:
    """Return migrations of a database that has only an async engine."""
    kind, _, rest = project.url.partition("://")
    database = Database(async_engine=create_async_engine(f"{ASYNC_DRIVERS[kind]}://{rest}"))
    return Migrations(database, project.migrations.location, metadata=project.migrations.metadata)


async def test_an_async_engine_is_enough(project: Project) -> None:
    """The twins use it on the running event loop."""
    migrations = async_only(project)

    assert await migrations.async_migrate() == MigrateResult.CREATED
    project.second()
    assert await migrations.async_migrate() == MigrateResult.UPGRADED
    assert await migrations.async_status() == Status.UP_TO_DATE
    with pytest.raises(WrongEventLoopError, match=r"await migrations\.async_migrate"):
        migrations.migrate()
    await migrations.database.async_engine.dispose()


def test_an_async_engine_is_enough_without_an_event_loop(project: Project) -> None:
    """The plain commands run an event loop of their own, each time."""
    migrations = async_only(project)

    assert (migrations.migrate(), migrations.migrate(), migrations.current()) == (
        MigrateResult.CREATED,
        MigrateResult.UP_TO_DATE,
        ("first",),
    )


def test_autogenerate_writes_what_the_models_have_and_the_database_lacks(project: Project) -> None:
    """It writes nothing if both agree, also in the names of constraints."""
    migrations = project.migrations
    (migrations.location / "versions" / "first.py").unlink()
    (path,) = migrations.revision("tables", autogenerate=True)
    assert 'op.create_table("customer"' in path.read_text().replace("'", '"')
    assert alembic(project, "upgrade", "heads") == 0  # in this process MariaDB's foreign keys are left out
    (path,) = migrations.revision("nothing", autogenerate=True)
    assert "op." not in path.read_text().replace("alembic import op", "")


def test_without_metadata_the_revisions_create_and_drop(project: Project) -> None:
    """Creating runs them, and dropping undoes them."""
    migrations = Migrations(project.migrations.database, project.migrations.location)

    assert (migrations.migrate(), migrations.migrate()) == (MigrateResult.CREATED, MigrateResult.UP_TO_DATE)
    assert project.tables() == ["alembic_version", "customer", "purchase"]
    migrations.drop()
    assert project.tables() == []


# States


def test_an_unreachable_database_is_an_error(tmp_path: Path) -> None:
    """It is never taken for an empty database."""
    with importable(tmp_path):
        project = Project(tmp_path, f"sqlite:///{tmp_path / 'missing' / 'shop.db'}")
        for command in (project.migrations.status, project.migrations.migrate, project.migrations.current):
            with pytest.raises(OperationalError, match="unable to open database file"):
                command()


def test_tables_without_a_version_are_left_alone_until_stamped(project: Project) -> None:
    """Told their revision, the command continues from it."""
    migrations = project.migrations
    assert migrations.metadata is not None
    migrations.metadata.create_all(migrations.database.engine)

    assert migrations.status() == Status.UNVERSIONED
    with pytest.raises(MigrationError, match=r'tables \(customer, purchase\) but no version.*migrate\(stamp="heads"\)'):
        migrations.migrate()
    with pytest.raises(MigrationError, match="cannot be created"):
        migrations.create()
    project.second()
    assert (migrations.migrate(stamp="first"), project.columns()) == (
        MigrateResult.UPGRADED,
        ["id", "name", "age", "town"],
    )


def test_stamping_alone_may_be_enough(on_sqlite: Project) -> None:
    """The tables are at the newest revision already, and the second call has nothing to do."""
    migrations = on_sqlite.migrations
    assert migrations.metadata is not None
    migrations.metadata.create_all(migrations.database.engine)

    assert (migrations.migrate(stamp="heads"), migrations.migrate(stamp="heads")) == (
        MigrateResult.STAMPED,
        MigrateResult.UP_TO_DATE,
    )


def test_tables_of_others_do_not_count(on_sqlite: Project) -> None:
    """With metadata, only its tables count."""
    with on_sqlite.migrations.database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE somebody_elses (id INTEGER)"))

    assert (on_sqlite.migrations.status(), on_sqlite.migrations.migrate()) == (Status.EMPTY, MigrateResult.CREATED)
    without = Migrations(on_sqlite.migrations.database, on_sqlite.migrations.location)
    assert without.status() == Status.UP_TO_DATE


def test_an_unknown_revision_is_a_state_of_its_own(on_sqlite: Project) -> None:
    """An older version of the application does not touch the database of a newer one."""
    on_sqlite.second()
    on_sqlite.migrations.migrate()
    (on_sqlite.migrations.location / "versions" / "second.py").unlink()

    assert on_sqlite.migrations.status() == Status.UNKNOWN_REVISION
    with pytest.raises(MigrationError, match="is at second, which is not among the scripts"):
        on_sqlite.migrations.migrate()


def test_a_database_created_before_the_first_revision_is_up_to_date(on_sqlite: Project) -> None:
    """No revision is missing."""
    (on_sqlite.migrations.location / "versions" / "first.py").unlink()

    assert (on_sqlite.migrations.migrate(), on_sqlite.migrations.migrate()) == (
        MigrateResult.CREATED,
        MigrateResult.UP_TO_DATE,
    )
    assert (on_sqlite.migrations.current(), on_sqlite.migrations.latest()) == ((), ())


def test_several_heads_are_all_reached(on_sqlite: Project) -> None:
    """A missing branch makes an upgrade available, and one that another branch depends on is not missed."""
    on_sqlite.script("left", "first")
    on_sqlite.migrations.create()
    on_sqlite.script("right", "first")
    on_sqlite.script("leaning", "first", depends_on="left")

    assert on_sqlite.migrations.latest() == ("leaning", "left", "right")
    assert on_sqlite.migrations.status() == Status.UPGRADE_AVAILABLE
    assert on_sqlite.migrations.migrate() == MigrateResult.UPGRADED
    assert on_sqlite.migrations.status() == Status.UP_TO_DATE
    assert set(on_sqlite.migrations.current()) == {"leaning", "right"}


def test_a_failed_revision_leaves_nothing_where_changes_are_transactions(project: Project) -> None:
    """On MariaDB the revisions before it are kept, and it is retried from its start."""
    project.migrations.migrate()
    project.second()
    project.script("third", "second", 'op.execute("SELECT * FROM nowhere")')

    with pytest.raises(Exception, match="nowhere"):
        project.migrations.migrate()
    kept = project.url.startswith("mariadb")
    assert (project.migrations.current(), "age" in project.columns()) == (("second",) if kept else ("first",), kept)
    project.script("third", "second")
    assert (project.migrations.migrate(), project.migrations.current()) == (MigrateResult.UPGRADED, ("third",))


# SQLite


def test_changing_a_table_keeps_the_rows_that_refer_to_it(on_sqlite: Project) -> None:
    """SQLite creates it anew, and with foreign keys on, dropping the old table would delete them."""
    fill(on_sqlite)
    on_sqlite.script(
        "second", "first", 'with op.batch_alter_table("customer", recreate="always") as t: t.drop_column("name")'
    )

    assert on_sqlite.migrations.migrate() == MigrateResult.UPGRADED
    with on_sqlite.migrations.database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM purchase")) == 1
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
    with pytest.raises(IntegrityError), on_sqlite.migrations.database.engine.begin() as connection:
        connection.execute(text("INSERT INTO purchase (customer_id) VALUES (99)"))


def test_a_revision_that_breaks_references_is_undone(on_sqlite: Project) -> None:
    """The error names the tables."""
    fill(on_sqlite)
    on_sqlite.script("second", "first", 'op.execute("DELETE FROM customer"); op.execute("CREATE TABLE x (id INTEGER)")')

    with pytest.raises(MigrationError, match="a row of purchase refers to a row of customer that does not exist"):
        on_sqlite.migrations.migrate()
    assert (on_sqlite.migrations.current(), "x" in on_sqlite.tables()) == (("first",), False)


def fill(project: Project) -> None:
    """Create the database with a customer and a purchase."""
    project.migrations.migrate()
    with project.migrations.database.engine.begin() as connection:
        connection.execute(text("INSERT INTO customer (id, name) VALUES (1, 'foo')"))
        connection.execute(text("INSERT INTO purchase (customer_id) VALUES (1)"))


def test_a_database_in_memory_is_migrated_too(tmp_path: Path) -> None:
    """Its sessions see the tables."""
    with importable(tmp_path):
        project = Project(tmp_path, "sqlite://")
        project.first()
        assert project.migrations.migrate() == MigrateResult.CREATED
        with project.migrations.database.engine.connect() as connection:
            assert exists_in_db(connection, "customer")
        project.migrations.database.dispose()


def test_an_engine_with_the_drivers_own_transactions_is_migrated_too(on_sqlite: Project) -> None:
    """An engine that was passed in has none of our settings."""
    engine = create_engine(f"sqlite:///{on_sqlite.folder / 'own.db'}", poolclass=NullPool)
    migrations = Migrations(
        Database(engine=engine), on_sqlite.migrations.location, metadata=on_sqlite.migrations.metadata
    )

    assert (migrations.migrate(), migrations.migrate()) == (MigrateResult.CREATED, MigrateResult.UP_TO_DATE)


def test_tables_older_than_the_first_revision(project: Project) -> None:
    """With ``stamp="base"`` every revision runs; the error names both ways."""
    (project.folder / "migrations" / "versions" / "first.py").unlink()
    assert project.migrations.migrate() == MigrateResult.CREATED
    project.script("later", None, 'op.add_column("customer", sa.Column("town", sa.String(50)))')
    if project.migrations.database.engine.dialect.name == "sqlite":
        with project.migrations.database.engine.begin() as connection:
            connection.execute(text("DROP TABLE alembic_version"))

    with pytest.raises(MigrationError, match=r'migrate\(stamp="heads"\).*stamp="base"'):
        project.migrations.migrate()
    assert project.migrations.migrate(stamp="base") == MigrateResult.UPGRADED
    assert (project.columns(), project.migrations.migrate()) == (["id", "name", "town"], MigrateResult.UP_TO_DATE)


def test_metadata_without_tables_is_warned_of(on_sqlite: Project, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody has not imported the models."""
    empty = Migrations(on_sqlite.migrations.database, on_sqlite.migrations.location, metadata=MetaData())
    (on_sqlite.migrations.location / "env.py").write_text(
        f"from asgi_sqla.migrations import run_env\nfrom {on_sqlite.module} import db\nrun_env(db)\n"
    )
    empty.migrate()

    assert "the metadata has no tables" in caplog.text


# Inside other things


@pytest.mark.parametrize("before", ["migrated", "empty"])
async def test_inside_rolled_back(project: Project, before: str) -> None:
    """The start-up of a tested application may migrate: the outer transaction is not lost by it."""
    migrations = project.migrations
    dialect = migrations.database.engine.dialect.name
    if before == "migrated" or dialect in ("mysql", "mariadb"):
        migrations.migrate()
    migrations.database.dispose()
    with rolled_back(migrations.database) as database:
        with session_scope(database) as session:
            session.execute(text("SELECT 1"))
        await migrations.async_migrate()
        with session_scope(database) as session:
            session.execute(text("INSERT INTO customer (id, name) VALUES (1, 'one')"))
        assert migrations.migrate() == MigrateResult.UP_TO_DATE
        with session_scope(database) as session:
            assert session.scalar(text("SELECT count(*) FROM customer")) == 1
    if "customer" in project.tables():
        with migrations.database.engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM customer")) == 0
    assert ("customer" in project.tables()) == (before == "migrated" or dialect in ("mysql", "mariadb"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_a_thread_migrates(on_sqlite: Project) -> None:
    """It can migrate: the thread that held the lock of the process is not in it."""
    with manager._alembic:
        child = os.fork()
        if child == 0:
            os._exit(0 if manager._alembic.acquire(timeout=5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_alembic_is_imported_by_the_first_command(on_sqlite: Project) -> None:
    """A web process that names its Migrations does not pay for it."""
    code = (
        f"import sys; sys.path.insert(0, {str(on_sqlite.folder)!r}); import {on_sqlite.module} as shop; "
        "assert 'alembic' not in sys.modules; shop.migrations.latest(); assert 'alembic' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_without_alembic_a_command_says_what_to_install(on_sqlite: Project) -> None:
    code = (
        f"import sys; sys.modules['alembic'] = None; sys.path.insert(0, {str(on_sqlite.folder)!r}); "
        f"import {on_sqlite.module} as shop; shop.migrations.migrate()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr.splitlines()[-1].endswith("which is not installed; write: pip install 'asgi-sqla[migrations]'")


# Settings of Alembic


def test_the_projects_alembic_ini_counts(on_sqlite: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is in the current directory and names the same scripts, or is passed as ``config``."""
    location = on_sqlite.migrations.location
    (location / "alembic.ini").unlink()
    ini = "[alembic]\nscript_location = {}\nfile_template = x_%%(rev)s\npath_separator = os\n"
    (on_sqlite.folder / "alembic.ini").write_text(ini.format("migrations"))
    (on_sqlite.folder / "own.ini").write_text(ini.format("ignored").replace("x_", "y_"))
    monkeypatch.chdir(on_sqlite.folder)
    passed = Migrations(on_sqlite.migrations.database, location, config=on_sqlite.folder / "own.ini")

    made = []
    for one in (on_sqlite.migrations, passed):
        one.upgrade()
        made.append(one.revision("a")[0].name)
    monkeypatch.chdir(on_sqlite.folder.parent)
    on_sqlite.migrations.upgrade()
    made.append(on_sqlite.migrations.revision("c")[0].name)

    assert [name[:2] for name in made[:2]] == ["x_", "y_"]
    assert made[2].endswith("_c.py")
    with pytest.raises(ConfigurationError, match=r"config='nowhere\.ini' is not a file"):
        Migrations(on_sqlite.migrations.database, location, config="nowhere.ini")


def test_autogenerate_imports_the_types_that_it_writes(tmp_path: Path) -> None:
    """SQLModel's strings have a type of their own, which the script has to import."""
    (tmp_path / "heroes.py").write_text(
        "from sqlmodel import Field, SQLModel\n"
        "from asgi_sqla import Database\n"
        "from asgi_sqla.migrations import Migrations\n"
        "class Hero(SQLModel, table=True):\n"
        "    id: int | None = Field(default=None, primary_key=True)\n"
        "    name: str\n"
        f"db = Database('sqlite:///{tmp_path / 'heroes.db'}')\n"
        f"migrations = Migrations(db, {str(tmp_path / 'migrations')!r}, metadata=SQLModel)\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path; from asgi_sqla.migrations import scaffold; import heroes\n"
        f"scaffold(Path({str(tmp_path / 'migrations')!r}), 'heroes:migrations')\n"
        "print(heroes.migrations.revision('first', autogenerate=True)[0].read_text())\n"
        "heroes.migrations.upgrade(); print(heroes.migrations.status())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "import sqlmodel.sql.sqltypes" in done.stdout
    assert done.stdout.endswith("Status.UP_TO_DATE\n")


# The plain alembic command


def test_the_alembic_command_prints_what_it_does(on_sqlite: Project) -> None:
    """The ini file that we write has it log as Alembic's own does."""
    code, out = run_alembic(on_sqlite, "upgrade", "heads")

    assert (code, "INFO  [alembic.runtime.migration] Running upgrade  -> first" in out) == (0, True)


def test_the_alembic_command_does_the_same(project: Project) -> None:
    """Its env.py is three statements, and it waits for the lock."""
    assert alembic(project, "upgrade", "heads") == 0
    assert project.migrations.status() == Status.UP_TO_DATE
    assert alembic(project, "check") == 0
    assert alembic(project, "downgrade", "base") == 0
    assert project.tables() == ["alembic_version"]


def test_the_alembic_command_prints_sql_without_a_database(tmp_path: Path) -> None:
    """Offline it needs only the dialect."""
    project = Project(tmp_path, "postgresql://nowhere.invalid/shop")
    project.first()

    code, out = run_alembic(project, "upgrade", "heads", "--sql")
    assert (code, "CREATE TABLE customer" in out) == (0, True)


def alembic(project: Project, *arguments: str) -> int:
    """Run the alembic command and return its exit code."""
    return run_alembic(project, *arguments)[0]


def run_alembic(project: Project, *arguments: str) -> tuple[int, str]:
    """Run the alembic command and return its exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-c", "migrations/alembic.ini", *arguments],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_an_env_that_would_not_use_the_lock_is_refused(on_sqlite: Project) -> None:
    """The error says what to write."""
    (on_sqlite.migrations.location / "env.py").write_text("print('my own')\n")

    with pytest.raises(MigrationError, match=r"does not call run_env\(\)"):
        on_sqlite.migrations.migrate()


def test_a_database_and_metadata_are_enough_for_env(on_sqlite: Project) -> None:
    """The application needs no Migrations."""
    env = (
        "from asgi_sqla.migrations import run_env",
        f"from {on_sqlite.module} import Base, db",
        "run_env(db, Base.metadata)",
    )
    (on_sqlite.migrations.location / "env.py").write_text("\n".join(env))

    assert alembic(on_sqlite, "upgrade", "heads") == 0
    assert alembic(on_sqlite, "check") == 0


# The lock


def test_a_lock_that_is_held_is_waited_for(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    """The command logs that it waits, and continues when the lock is free."""
    caplog.set_level(logging.INFO, logger="asgi_sqla")
    done: list[MigrateResult] = []
    other = holder(project, connect_timeout=0.1)
    thread = threading.Thread(target=lambda: done.append(project.migrations.migrate()))

    def hold(_connection: object) -> None:
        thread.start()
        for _ in range(500):
            if "waiting for the migration lock" in caplog.text:
                return
            thread.join(0.02)

    other.with_lock(hold)
    thread.join()

    assert "waiting for the migration lock" in caplog.text
    assert done == [MigrateResult.CREATED]


def holder(project: Project, connect_timeout: float) -> Migrations:
    """Return other migrations of the database; on SQLite those of the project stop waiting early."""
    if project.url.startswith("sqlite"):
        project.migrations.database.configure(
            project.url, engine_options={"connect_args": {"timeout": connect_timeout}}
        )
    return Migrations(Database(project.url, engine_options={"poolclass": NullPool}), project.migrations.location)


def test_a_lock_that_is_held_too_long_is_an_error(project: Project) -> None:
    """It is a TimeoutError, and the lock is available afterwards."""
    other = holder(project, connect_timeout=0.1)
    project.migrations.lock_timeout = 0.2

    def ask(_connection: object) -> None:
        with pytest.raises(MigrationLockError, match=r"more than 0.2 seconds") as caught:
            project.migrations.migrate()
        assert isinstance(caught.value, TimeoutError)

    other.with_lock(ask)
    assert project.migrations.migrate() == MigrateResult.CREATED


def test_the_lock_is_free_after_an_error(project: Project) -> None:
    """This holds for any error, and the connection stays usable."""

    def fail(_connection: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        project.migrations.with_lock(fail)
    other = Migrations(Database(project.url, engine_options={"poolclass": NullPool}), project.migrations.location)
    assert other.with_lock(lambda connection: connection.scalar(select(1))) == 1


async def test_commands_of_one_process_take_turns(project: Project) -> None:
    """Threads and tasks do so, because Alembic keeps its state in a global."""
    results = await asyncio.gather(
        *[project.migrations.async_migrate() for _ in range(4)],
        *[asyncio.to_thread(project.migrations.migrate) for _ in range(4)],
    )

    assert sorted(result.name for result in results) == ["CREATED"] + ["UP_TO_DATE"] * 7


def test_a_database_without_a_known_lock_is_warned_of(
    on_sqlite: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is migrated anyway."""
    from asgi_sqla.migrations import lock

    monkeypatch.delitem(lock._LOCKS, "sqlite")
    on_sqlite.migrations.status()

    assert "no migration lock is known for sqlite" in caplog.text


# Many processes


def test_of_eight_processes_that_sync_at_once_one_creates_and_one_upgrades(project: Project) -> None:
    """The others find it done, and all exit with 0."""
    codes, said = project.at_once(PROCESSES, "migrate")
    assert codes == [0] * PROCESSES
    assert sorted(last_lines(said)) == ["Database created."] + ["Database up to date."] * (PROCESSES - 1)
    assert project.tables() == ["alembic_version", "customer", "purchase"]

    project.second()
    codes, said = project.at_once(PROCESSES, "migrate")
    assert codes == [0] * PROCESSES
    assert sorted(last_lines(said)) == ["Database up to date."] * (PROCESSES - 1) + ["Database upgraded."]
    assert project.columns() == ["id", "name", "age", "town"]


def last_lines(said: list[str]) -> list[str]:
    """Return the last line of each."""
    return [each.splitlines()[-1] for each in said]


def test_a_creation_that_was_killed_in_the_middle_is_completed_by_the_next(project: Project) -> None:
    """This holds too if the database cannot undo the creation of tables."""
    project.kill_in_the_middle("migrate")

    codes, said = project.at_once(2, "migrate")
    assert (codes, sorted(last_lines(said))) == ([0, 0], ["Database created.", "Database up to date."])
    assert project.tables() == ["alembic_version", "customer", "purchase"]
    assert project.migrations.status() == Status.UP_TO_DATE


def test_an_upgrade_that_was_killed_in_the_middle_is_completed_by_the_next(project: Project) -> None:
    """On MariaDB the revision uses exists_in_db to see what exists."""
    project.migrations.migrate()
    project.second()
    project.kill_in_the_middle("upgrade")

    codes, said = project.at_once(2, "migrate")
    assert (codes, sorted(last_lines(said))) == ([0, 0], ["Database up to date.", "Database upgraded."])
    assert project.columns() == ["id", "name", "age", "town"]


@pytest.mark.parametrize("project", ["postgresql"], indirect=True)
def test_a_revision_that_waits_for_other_transactions_does_not_wait_for_the_lock(project: Project) -> None:
    """An index created concurrently waits for every snapshot, so a process that waits for the lock must hold none."""
    project.migrations.migrate()
    upgrade = """
    with op.get_context().autocommit_block():
        op.create_index("by_id", "purchase", ["customer_id"], postgresql_concurrently=True)
"""
    project.script("second", "first", upgrade)

    codes, said = project.at_once(4, "migrate")
    assert codes == [0] * 4
    assert sorted(last_lines(said)) == ["Database up to date."] * 3 + ["Database upgraded."]


@pytest.mark.parametrize("project", ["mariadb"], indirect=True)
def test_what_an_interrupted_creation_left_is_not_dropped_once_it_has_rows(project: Project) -> None:
    """Something uses the table, so a person has to decide."""
    project.kill_in_the_middle("migrate")
    migrations = project.migrations
    assert migrations.status() == Status.INTERRUPTED
    assert isinstance(migrations.metadata, MetaData)
    with migrations.database.engine.begin() as connection:
        connection.execute(insert(migrations.metadata.tables["customer"]).values(name="foo"))

    with pytest.raises(MigrationError, match="customer has rows"):
        migrations.migrate()


# At the start of an application


async def start(project: Project) -> list[str]:
    """Start an application that migrates first, stop it, and return what the server received."""
    told: list[str] = []
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(events)

    async def send(message: Any) -> None:
        told.append(message["type"] + (f": {message['message']}" if "message" in message else ""))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    migrations = project.migrations
    middleware = SQLAlchemyMiddleware(app, migrations.database, on_startup=migrations.async_migrate)
    with suppress(MigrationError):  # which the server was told of before
        await middleware({"type": "lifespan"}, receive, send)
    return told


async def test_an_application_can_sync_when_it_starts(project: Project) -> None:
    """This runs before its own startup, and the engines are disposed at its end."""
    assert await start(project) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert project.migrations.status() == Status.UP_TO_DATE


async def test_an_application_that_cannot_sync_does_not_start(on_sqlite: Project) -> None:
    """The server gets the reason."""
    (on_sqlite.migrations.location / "env.py").unlink()

    (told,) = await start(on_sqlite)
    assert told.startswith("lifespan.startup.failed: on_startup failed: MigrationError: there is no env.py in")


# Helpers of scripts, and arguments


def test_scripts_can_ask_what_is_there(project: Project) -> None:
    """They can ask an engine or a connection for a table, a column or a view."""
    project.migrations.migrate()
    engine = project.migrations.database.engine
    with engine.begin() as connection:
        connection.execute(text("CREATE VIEW names AS SELECT name FROM customer"))

    with engine.connect() as connection:
        found = [exists_in_db(connection, table) for table in ("customer", "names", "nothing")]
    assert found == [True, True, False]
    assert [exists_in_db(engine, "customer", column) for column in ("name", "nmae")] == [True, False]
    assert exists_in_db(engine, "nothing", "name") is False
    assert is_sqlite(engine) == project.url.startswith("sqlite")


def test_a_location_without_scripts_is_an_error_that_says_how_to_make_them(tmp_path: Path) -> None:
    """The location is read on first use, because the scaffold may come later."""
    migrations = Migrations(Database("sqlite://"), tmp_path / "nowhere")

    with pytest.raises(MigrationError, match="--target module:name init"):
        migrations.latest()


def test_wrong_arguments_are_errors_at_once(tmp_path: Path) -> None:
    """The message says what to write."""
    with pytest.raises(ConfigurationError, match=r"write Migrations\(Database\(url\), location\)"):
        Migrations("sqlite://", tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"pass Base.metadata"):
        Migrations(Database("sqlite://"), tmp_path, metadata="Base")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"such as migrations\.async_migrate"):
        SQLAlchemyMiddleware(print, Database("sqlite://"), on_startup=3)  # type: ignore[arg-type]


def test_what_alembic_refuses_is_its_own_error(on_sqlite: Project) -> None:
    """The error is not wrapped."""
    with pytest.raises(CommandError, match="nowhere"):
        on_sqlite.migrations.upgrade("nowhere")


def test_every_command_waits_for_the_lock(on_sqlite: Project) -> None:
    """All but ``latest``, which reads the scripts alone."""
    migrations = on_sqlite.migrations
    other = holder(on_sqlite, connect_timeout=0.01)
    migrations.lock_timeout = 0.0
    arguments: dict[str, list[str]] = {"downgrade": ["base"], "revision": ["late"]}
    names = ("migrate", "create", "upgrade", "downgrade", "drop", "status", "current", "revision")

    def ask(_connection: object) -> None:
        for name in names:
            with pytest.raises(MigrationLockError):
                getattr(migrations, name)(*arguments.get(name, ()))
        assert migrations.latest() == ("first",)

    other.with_lock(ask)
    assert {name for name in dir(migrations) if hasattr(migrations, f"async_{name}")} == {*names, "latest", "with_lock"}
