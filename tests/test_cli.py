"""The command line: what each command prints, and the exit codes for scripts."""

from __future__ import annotations

import importlib
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from support.empty import KINDS, empty_database
from support.migrating import Project, importable

from asgi_sqla import ConfigurationError, Database
from asgi_sqla.cli import BEHIND, FAILED, LOCKED, REFUSED, USAGE, commands, main, syncdb
from asgi_sqla.migrations import MigrateResult, Migrations


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Return a project on SQLite, in the current directory."""
    monkeypatch.chdir(tmp_path)
    with importable(tmp_path):
        project = Project(tmp_path, f"sqlite:///{tmp_path / 'shop.db'}")
        project.first()
        yield project
        project.migrations.database.dispose()


def run(project: Project, *arguments: str, answer: str | None = None) -> Result:
    """Run ``asgi-sqla`` on the project's migrations."""
    return CliRunner().invoke(main, ["--target", f"{project.module}:migrations", *arguments], input=answer)


def ended(result: Result) -> tuple[int, str]:
    """Return the exit code and what was printed on stdout."""
    return result.exit_code, result.stdout


def test_a_deployment(project: Project) -> None:
    """The command status tells a script what to do next."""
    steps = [run(project, "status"), run(project, "migrate"), run(project, "status"), run(project, "migrate")]
    project.second()
    steps += [run(project, "status"), run(project, "migrate")]

    assert [ended(step) for step in steps] == [
        (BEHIND, "status   empty\ncurrent  -\nlatest   first\n"),
        (0, "Database created.\n"),
        (0, "status   up to date\ncurrent  first\nlatest   first\n"),
        (0, "Database up to date.\n"),
        (BEHIND, "status   upgrade available\ncurrent  first\nlatest   second\n"),
        (0, "Database upgraded.\n"),
    ]


def test_progress_goes_to_stderr(project: Project) -> None:
    """Created tables and each revision are reported while they run."""
    created = run(project, "migrate")
    project.second()
    upgraded = run(project, "migrate")

    assert created.stderr == "creating the tables\nRunning stamp_revision  -> first\n"
    assert upgraded.stderr == "Running upgrade first -> second\n"


def test_each_command_alone(project: Project) -> None:
    """create, downgrade, upgrade and revision work by themselves."""
    assert ended(run(project, "create")) == (0, "Database created.\n")
    assert ended(run(project, "downgrade", "base", "--yes")) == (0, "Downgraded to base.\n")
    assert ended(run(project, "upgrade")) == (0, "Upgraded to heads.\n")
    made = run(project, "revision", "-m", "more", "--autogenerate")
    assert (made.exit_code, Path(made.stdout.strip()).read_text()[:7]) == (0, '"""more')


def test_drop_asks_first(project: Project) -> None:
    """Nothing is dropped without a yes."""
    run(project, "migrate")

    refused = run(project, "drop", answer="n\n")
    assert (refused.exit_code, "customer" in project.tables()) == (1, True)
    assert "Drop every table of <Database sqlite:///" in refused.output
    assert run(project, "drop", answer="y\n").exit_code == 0
    assert project.tables() == []
    run(project, "migrate")
    assert ended(run(project, "drop", "--yes")) == (0, "Database dropped.\n")


def test_tables_without_a_version_need_a_person(project: Project) -> None:
    """The exit codes report it, and --stamp resolves it."""
    with project.migrations.database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE customer (id INTEGER)"))

    refused = run(project, "migrate")
    assert (run(project, "status").exit_code, refused.exit_code) == (REFUSED, REFUSED)
    assert "asgi-sqla migrate --stamp heads" in refused.stderr
    assert ended(run(project, "migrate", "--stamp", "heads")) == (0, "Database stamped, and up to date.\n")


def test_a_held_lock_has_an_exit_code(project: Project) -> None:
    """A script can retry later."""
    project.migrations.lock_timeout = 0.0
    project.migrations.database.configure(project.url, engine_options={"connect_args": {"timeout": 0.1}})
    other = Migrations(Database(project.url, engine_options={"poolclass": NullPool}), project.migrations.location)

    result = other.with_lock(lambda _connection: run(project, "migrate"))
    assert (result.exit_code, "waiting for the migration lock" in result.stderr) == (LOCKED, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--target", "shop", "migrate"], USAGE, "'shop' cannot be imported"),
        (["--target", "nowhere:db", "migrate"], USAGE, "No module named 'nowhere'"),
        (["--target", "pathlib:Path", "migrate"], USAGE, "neither a Database nor Migrations"),
        (["--target", "pathlib:nothing", "migrate"], USAGE, "has no attribute 'nothing'"),
        (["migrate"], USAGE, "DATABASE_URL: Field required"),
        (["init"], USAGE, "init needs --target"),
        (["revision"], USAGE, "Missing option '--message'"),
    ],
)
def test_a_wrong_use_is_one_line(
    arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also has its own exit code."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    result = CliRunner().invoke(main, arguments)

    assert (result.exit_code, message in result.stderr) == (code, True)


def test_an_unreachable_database_is_one_line(project: Project) -> None:
    """The line contains the driver's own words."""
    project.migrations.database.configure(f"sqlite:///{project.folder / 'missing' / 'shop.db'}")
    for command in ("status", "migrate", "check"):
        result = run(project, command)
        assert (result.exit_code, "unable to open database file" in result.stderr) == (FAILED, True)


def test_what_alembic_refuses_is_one_line(project: Project) -> None:
    """The line contains Alembic's own words."""
    result = run(project, "upgrade", "nowhere")

    assert (result.exit_code, result.stderr) == (
        FAILED,
        "Error: CommandError: Can't locate revision identified by 'nowhere'; asgi-sqla status says the latest\n",
    )


@pytest.mark.parametrize("target", ["base", "-1"])
def test_downgrade_asks_first(project: Project, target: str) -> None:
    """It drops what the revisions had created, so it names the database; "-1" is a target and no option."""
    run(project, "migrate")
    no = run(project, "downgrade", target, answer="n\n")
    assert (no.exit_code, f"{project.folder / 'shop.db'}> down to {target}?" in no.stdout) == (FAILED, True)
    assert "customer" in project.tables()

    assert run(project, "downgrade", target, answer="y\n").exit_code == 0
    assert project.tables() == ["alembic_version"]


@pytest.mark.parametrize(
    ("broken", "content", "said"),
    [
        ("script", "import nothing_of_the_kind\n", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("script", "def upgrade(:\n", "SyntaxError: invalid syntax"),
        ("env.py", "from asgi_sqla.migrations import run_env\nrun_env(undefined)\n", "name 'undefined' is not defined"),
        ("application", "raise LookupError('no settings')\n", "LookupError: no settings"),
    ],
)
def test_what_cannot_be_imported_is_one_line(project: Project, broken: str, content: str, said: str) -> None:
    """It says what was raised, and in which line of which file."""
    file = {
        "script": project.folder / "migrations" / "versions" / "broken.py",
        "env.py": project.folder / "migrations" / "env.py",
        "application": project.folder / "broken_application.py",
    }[broken]
    file.write_text(content)
    target = "broken_application:migrations" if broken == "application" else f"{project.module}:migrations"

    result = CliRunner().invoke(main, ["--target", target, "migrate"])

    last = result.stderr.splitlines()[-1]
    assert (result.exit_code != 0, "Traceback" in result.stderr) == (True, False)
    assert (last.startswith("Error: "), said in last) == (True, True)
    assert f"{file}, line {content.count(chr(10))}" in last


def test_a_revision_that_raises_is_one_line(project: Project) -> None:
    """It names the line of the script."""
    project.script("second", "first", "raise LookupError('not today')")
    run(project, "upgrade", "first")

    result = run(project, "migrate")

    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        FAILED,
        f"Error: LookupError: not today ({project.folder}/migrations/versions/second.py, line 12)",
    )


def test_the_environment_names_the_database(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASE_URL is enough, because the revisions make the tables."""
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{project.folder / 'other.db'}")

    assert ended(CliRunner().invoke(main, ["migrate"])) == (0, "Database created.\n")
    engine = create_engine(f"sqlite:///{project.folder / 'other.db'}", poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "first"


def test_a_database_beside_its_metadata(project: Project) -> None:
    """A Database replaces Migrations, with the default location or another one."""
    found = ["--target", f"{project.module}:db", "--metadata", f"{project.module}:Base"]
    assert ended(CliRunner().invoke(main, [*found, "migrate"])) == (0, "Database created.\n")
    (project.folder / "migrations").rename(project.folder / "elsewhere")
    assert ended(CliRunner().invoke(main, [*found, "--location", "elsewhere", "migrate"])) == (
        0,
        "Database up to date.\n",
    )


def test_init_writes_what_the_other_commands_need(tmp_path: Path) -> None:
    """The installed commands go from nothing to a database with a first revision."""
    (tmp_path / "shop.py").write_text(
        "from sqlalchemy.orm import Mapped, mapped_column\n"
        "from asgi_sqla import Database\n"
        "from asgi_sqla.models import Base\n"
        "class Item(Base):\n"
        "    __tablename__ = 'item'\n"
        "    id: Mapped[int] = mapped_column(primary_key=True)\n"
        "db = Database('sqlite:///shop.db')\n"
    )
    command = [sys.executable, "-m", "asgi_sqla.cli", "--target", "shop:db", "--metadata", "shop:Base"]

    def call(*arguments: str) -> str:
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    assert call("init").split() == ["migrations/env.py", "migrations/script.py.mako", "migrations/alembic.ini"]
    assert call("init") == ""
    assert call("revision", "-m", "first", "--autogenerate").endswith("_first.py\n")
    assert call("migrate") == "Database created.\n"
    (env,) = (tmp_path / "migrations").glob("env.py")
    statements = [line for line in env.read_text().splitlines() if line and not line.startswith('"""')]
    assert statements == [
        "from shop import Base, db",
        "from asgi_sqla.migrations import run_env",
        "run_env(db, Base.metadata)",
    ]


def test_init_writes_where_the_migrations_are(project: Project) -> None:
    """A Migrations knows its directory."""
    location = project.migrations.location
    shutil.rmtree(location)

    assert run(project, "init").stdout.split()[0] == str(location / "env.py")


@pytest.mark.parametrize("kind", KINDS)
def test_check_connects_and_prints_versions_and_pool_numbers(kind: str, tmp_path: Path) -> None:
    """It does so with both kinds of engine."""
    with empty_database(kind, tmp_path) as url, importable(tmp_path):
        project = Project(tmp_path, url)
        result = run(project, "check")
        project.migrations.database.dispose()

    first, sync, asynchronous = result.stdout.splitlines()
    assert (result.exit_code, result.stderr) == (0, "")
    assert first.startswith("asgi-sqla ")
    assert "SQLAlchemy" in first
    assert ("driver" in sync, "driver" in asynchronous) == (True, True)
    assert "Current Checked out connections: 1" in sync


def test_check_says_which_kind_has_no_driver(project: Project) -> None:
    """One of the two is enough."""
    engine = create_engine("sqlite://")
    project.migrations.database.configure(engine=engine)

    result = run(project, "check")
    engine.dispose()
    assert (result.exit_code, result.stdout.splitlines()[2][:12]) == (0, "async  none:")


def test_a_command_line_of_ones_own_takes_the_group(project: Project) -> None:
    """The group has no options, because the migrations are known."""

    @click.group()
    def shop() -> None:
        """Run the shop."""

    shop.add_command(commands(project.migrations))
    result = CliRunner().invoke(shop, ["db", "migrate"])
    behind = CliRunner().invoke(shop, ["db", "status"])

    assert ended(result) == (0, "Database created.\n")
    assert behind.exit_code == 0
    assert CliRunner().invoke(shop, ["db", "init"]).exit_code == USAGE


def test_syncdb_is_for_a_command_of_ones_own(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """It accepts migrations or settings, and prints what was done."""
    settings = {"sqlalchemy": {"url": project.url}, "alembic": {"migrations_path": project.migrations.location}}

    base = importlib.import_module(project.module).Base

    assert syncdb(settings, metadata=base) == MigrateResult.CREATED  # not by the revisions, which its log would show
    assert syncdb(project.migrations) == MigrateResult.UP_TO_DATE
    with pytest.raises(ConfigurationError, match="metadata="):
        syncdb(project.migrations, metadata=base)
    assert capsys.readouterr().out == "Database created.\nDatabase up to date.\n"


def test_the_script_is_installed() -> None:
    """Its help explains the exit codes."""
    script = Path(sys.executable).with_name("asgi-sqla")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)

    assert "4 a person has to decide" in " ".join(done.stdout.split())


def test_the_package_imports_none_of_it() -> None:
    """Importing the package imports neither Alembic nor click nor pydantic."""
    code = (
        "import sys, asgi_sqla; print(sorted({'alembic', 'click', 'pydantic', 'pydantic_settings'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("room", "extra", "lacks"),
    [
        ("asgi_sqla.cli", "cli", "click"),
        ("asgi_sqla.cli", "cli", "alembic"),
        ("asgi_sqla.settings", "settings", "pydantic_settings"),
    ],
)
def test_a_missing_extra_is_named(room: str, extra: str, lacks: str) -> None:
    """The error is one sentence with the command that installs it."""
    code = f"import sys; sys.modules[{lacks!r}] = None; import {room}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ModuleNotFoundError: {room} needs {lacks}")
    assert last.endswith(f"which is not installed; write: pip install 'asgi-sqla[{extra}]'")


def test_the_script_without_its_extra_is_one_line() -> None:
    code = "import sys; sys.modules['click'] = None; from asgi_sqla.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (
        FAILED,
        "",
        "Error: asgi_sqla.cli needs click, which is not installed; write: pip install 'asgi-sqla[cli]'\n",
    )


# On a terminal


def on_a_terminal(folder: Path, *arguments: str, answer: str = "") -> tuple[int, str]:
    """Run ``asgi-sqla`` with a terminal for its input and output; return its exit code and what the terminal shows."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "asgi_sqla", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdin=its, stdout=its, stderr=its)
    os.close(its)
    os.write(ours, answer.encode())
    shown = b""
    with suppress(OSError):  # the other end is closed
        while read := os.read(ours, 4096):
            shown += read
    os.close(ours)
    return process.wait(), shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "said"),
    [
        ((), "", 2, "Usage: asgi-sqla [OPTIONS] COMMAND [ARGS]..."),
        (("--help",), "", 0, "Look at a database and migrate it."),
        (("drop",), "n\n", FAILED, "Aborted!"),
        (("downgrade", "base"), "\n", FAILED, "down to base? [y/N]: "),
        (("status",), "", BEHIND, "status   empty"),
        (("migrate", "--stamp"), "", USAGE, "Error: Option '--stamp' requires an argument."),
        (("nothing",), "", USAGE, "No such command 'nothing'."),
        (("--target", "nowhere:db", "status"), "", USAGE, "Error: 'nowhere:db' cannot be imported"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_on_a_terminal(project: Project, arguments: tuple[str, ...], answer: str, code: int, said: str) -> None:
    """Help, success and failures are sentences, never a traceback, with the documented exit codes."""
    target = () if "--target" in arguments else ("--target", f"{project.module}:migrations")

    found, shown = on_a_terminal(project.folder, *target, *arguments, answer=answer)

    assert (found, said in shown, "Traceback" in shown) == (code, True, False)


def test_the_readme_names_every_command() -> None:
    """And no other."""
    told = re.search(r"Its commands are (.+?)\.", (Path(__file__).parent.parent / "README.rst").read_text(), re.DOTALL)
    assert told is not None
    assert sorted(re.findall(r"``(\w+)``", told[1])) == sorted(main.commands)
