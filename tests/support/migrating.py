"""A project with migrations: an application's module, its scripts, and processes that migrate it."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from asgi_sqla.migrations import Migrations, scaffold
from support.empty import empty_database

APPLICATION = """
import time
from pathlib import Path

from sqlalchemy import ForeignKey, MetaData, String, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asgi_sqla import Database
from asgi_sqla.migrations import Migrations
from asgi_sqla.models import NAMING_CONVENTION


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)


class Purchase(Base):
    __tablename__ = "purchase"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id", ondelete="CASCADE"))


@event.listens_for(Customer.__table__, "after_create")
def stop_if_asked(*_, **__):
    stop_here({folder!r})


def stop_here(folder):
    if (Path(folder) / "stop").exists():
        (Path(folder) / "reached").touch()
        time.sleep(60)


db = Database({url!r})
migrations = Migrations(db, {folder!r} + "/migrations", metadata=Base.metadata)
"""

FIRST = """
    op.create_table(
        "customer",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(50), nullable=False, unique=True),
    )
    op.create_table(
        "purchase",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("customer_id", sa.Integer, sa.ForeignKey("customer.id", ondelete="CASCADE"), nullable=False),
    )
"""

SECOND = """
    from asgi_sqla.migrations import exists_in_db
    from {module} import stop_here

    if not exists_in_db(op.get_bind(), "customer", "age"):
        op.add_column("customer", sa.Column("age", sa.Integer))
    stop_here({folder!r})
    op.add_column("customer", sa.Column("town", sa.String(50)))
"""

SCRIPT = """
import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {down_revision!r}
branch_labels = None
depends_on = {depends_on!r}


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    {downgrade}
"""

_numbers = itertools.count(1)


class Project:
    """An application with two tables, in a folder, on a database."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.module = f"shop_{os.getpid()}_{next(_numbers)}"
        (folder / f"{self.module}.py").write_text(APPLICATION.format(url=url, folder=str(folder)))
        scaffold(folder / "migrations", f"{self.module}:migrations")

    @property
    def migrations(self) -> Migrations:
        """The application's own."""
        found = importlib.import_module(self.module).migrations
        assert isinstance(found, Migrations)
        return found

    def script(self, revision: str, after: Any = None, upgrade: str = "pass", **more: Any) -> None:
        """Write a revision script."""
        text = SCRIPT.format(
            revision=revision,
            down_revision=after,
            upgrade=upgrade.strip(),
            downgrade=more.get("downgrade", "pass").strip(),
            depends_on=more.get("depends_on"),
        )
        (self.folder / "migrations" / "versions" / f"{revision}.py").write_text(text)

    def first(self) -> None:
        """Write the revision that makes the tables."""
        self.script("first", None, FIRST, downgrade='op.drop_table("purchase")\n    op.drop_table("customer")')

    def second(self) -> None:
        """Write a revision that adds two columns, and can be stopped between them."""
        self.script("second", "first", SECOND.format(module=self.module, folder=str(self.folder)))

    def tables(self) -> list[str]:
        """Return the names of the tables, as another connection sees them."""
        engine = create_engine(self.migrations.database.engine.url, poolclass=NullPool)
        return sorted(inspect(engine).get_table_names())

    def columns(self, table: str = "customer") -> list[str]:
        """Return the names of the columns of a table, as another connection sees them."""
        engine = create_engine(self.migrations.database.engine.url, poolclass=NullPool)
        return [column["name"] for column in inspect(engine).get_columns(table)]

    def start(self, *arguments: str) -> ForkServerProcess:
        """Start ``asgi-sqla`` in a new process; its output goes to a file."""
        process = _processes().Process(
            target=run_command, args=(str(self.folder), f"{self.module}:migrations", arguments)
        )
        process.start()
        return process

    def at_once(self, number: int, *arguments: str) -> tuple[list[int | None], list[str]]:
        """Run that many at once; return their exit codes and what they printed."""
        (self.folder / "go").unlink(missing_ok=True)
        processes = [self.start("--wait-for-go", *arguments) for _ in range(number)]
        deadline = time.monotonic() + 30
        while not all((self.folder / f"{process.pid}.ready").exists() for process in processes):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (self.folder / "go").touch()
        return [finish(process) for process in processes], [self.said(process) for process in processes]

    def said(self, process: ForkServerProcess) -> str:
        """Return what a process printed, without its progress."""
        return (self.folder / f"{process.pid}.out").read_text().strip()

    def kill_in_the_middle(self, *arguments: str) -> None:
        """Start a command that stops in the middle, and kill it there."""
        (self.folder / "stop").touch()
        process = self.start(*arguments)
        deadline = time.monotonic() + 30
        while not (self.folder / "reached").exists():
            assert time.monotonic() < deadline, self.said(process)
            assert process.is_alive(), self.said(process)
            time.sleep(0.01)
        process.kill()
        process.join()
        (self.folder / "stop").unlink()


def _processes() -> ForkServerContext:
    """Return what starts clean processes with the imports done, so that they run at the same time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["asgi_sqla.cli", "support.migrating"])
    return context


def finish(process: ForkServerProcess) -> int | None:
    """Wait for the end of a process and return its exit code."""
    process.join(timeout=50)
    return process.exitcode


def run_command(folder: str, db: str, arguments: tuple[str, ...]) -> None:
    """Run ``asgi-sqla`` in this process, its output in a file."""
    from asgi_sqla.cli import main

    os.chdir(folder)
    sys.path.insert(0, folder)
    with Path(f"{os.getpid()}.out").open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        if arguments[0] == "--wait-for-go":
            arguments = arguments[1:]
            Path(f"{os.getpid()}.ready").touch()
            while not Path("go").exists():
                time.sleep(0.001)
        main(["--target", db, *arguments])


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Allow imports of modules in ``folder``."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def first_project(kind: str, folder: Path) -> Iterator[Project]:
    """Give a project in ``folder``, on a ``kind`` of database, with the revision that creates its tables."""
    with empty_database(kind, folder) as url, importable(folder):
        project = Project(folder, url)
        project.first()
        yield project
        project.migrations.database.dispose()
