# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.2.9"]
# ///
"""The one door to the tools: ``nox -l`` lists what it opens."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = "CI" in os.environ

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
OLDEST = PYTHONS[0]
MEASURED = "3.12"  # of the three, any: the tracer is the same
EXTRAS = ("cli", "demo", "migrations", "mysql", "postgresql", "settings", "sqlite", "testing")
"""What the tests exercise."""
DRIVERS = ("psycopg2", "pymysql", "mysqldb", "aiomysql")
"""What the tests call each pair of drivers, of a sync and an async one, that the session tests does not run."""
WORKERS = "4"
"""Processes of pytest: twice as many as cores, for much of what is tested is waiting."""
UNMEASURED = (
    *("cli", "demo", "docstrings", "fastapi", "fuzz", "house", "layout", "migrations", "models", "moving_over"),
    *("plugin", "properties", "readme", "settings", "typed"),
)
"""The tests of the annexes, and of the core those that only repeat, which the two other Pythons run."""
INSTALLED = {"PYTHONSAFEPATH": "1"}
"""Keeps the checkout off the path, so that the tests import the wheel."""
MEMORY = Path("/dev/shm")  # noqa: S108  # not a file of ours: a file system in memory
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * 2**30:  # their databases spare the disk
    INSTALLED["TMPDIR"] = str(MEMORY)


def build_wheel(session: nox.Session) -> str:
    """Build the wheel once per run, and return its path; two runs at a time do not share it."""
    folder = Path(session.cache_dir) / f"wheel-{os.getpid()}"
    if not getattr(build_wheel, "done", False):
        shutil.rmtree(folder, ignore_errors=True)
        session.install("build")
        session.run_install("python", "-m", "build", "--wheel", "--outdir", str(folder), silent=True)
        build_wheel.done = True  # type: ignore[attr-defined]  # once per run of nox
    # With nox's own --no-install nothing is built, and the last one counts.
    built = sorted(folder.glob("*.whl")) or sorted(
        folder.parent.glob("wheel-*/*.whl"), key=lambda one: one.stat().st_mtime
    )
    return str(built[-1])


def group(name: str) -> list[str]:
    """Return a dependency group without the package itself, which is installed as a wheel."""
    wanted = nox.project.dependency_groups(PROJECT, name)
    return [requirement for requirement in wanted if not requirement.startswith("asgi-sqla")]


def install_wheel(session: nox.Session, *extras: str) -> None:
    """Install the wheel with ``extras``, and what the tests need."""
    session.install(f"{build_wheel(session)}[{','.join(extras)}]", *group("test"))


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest on the installed wheel."""
    session.run("pytest", *arguments, *session.posargs, env=INSTALLED)


def run_measured(session: nox.Session, *arguments: str) -> None:
    """Run pytest on the installed wheel; fail if it covers less of the core than ``pyproject.toml`` asks for."""
    env = {**INSTALLED, "COVERAGE_FILE": str(Path(session.virtualenv.location).resolve() / "coverage")}
    others = [f"--ignore=tests/test_{name}.py" for name in UNMEASURED]
    session.run("coverage", "erase", env=env)
    session.run("coverage", "run", "-m", "pytest", *arguments, *others, env=env)
    session.run("coverage", "combine", "--quiet", env=env)
    session.run("coverage", "report", env=env)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, on SQLite and on the PostgreSQL of a wheel; on the oldest Python with the oldest dependencies."""
    session.log("each Python takes about four minutes on two idle cores; what is skipped is listed at the end, and why")
    install_wheel(session, *EXTRAS)
    if session.python == OLDEST:  # the newest run on it in the session matrix
        session.install(*floors())
    if session.python == MEASURED and not session.posargs:
        run_measured(session, "-n", WORKERS)
    else:
        run_pytest(session, "-n", WORKERS)


def floors() -> list[str]:
    """Return the oldest dependencies we name, exactly: those of the package, and the drivers whose insides we use."""
    project = PROJECT["project"]
    named = [one.split(",")[0] for one in (*project["dependencies"], *project["optional-dependencies"]["postgresql"])]
    return [requirement.replace(">=", "==") for requirement in named]


@nox.session(python=OLDEST)
def matrix(session: nox.Session) -> None:
    """Run every framework, server, worker and further driver for real, and print the matrix."""
    install_wheel(session, *EXTRAS)
    session.install(*group("matrix"))
    # Built on the spot, where the headers of the client library are; without it its row says so.
    session.run("python", "-m", "pip", "install", "--quiet", "mysqlclient", success_codes=[0, 1], silent=True)
    arq = Path(session.virtualenv.location).resolve() / "arq"
    session.run("python", "-m", "venv", str(arq))
    session.run(
        str(arq / "bin" / "python"),
        *("-m", "pip", "install", "--quiet", f"{build_wheel(session)}[postgresql]", *group("arq")),
        external=True,
    )
    session.env["ASGI_SQLA_TEST_ARQ_PYTHON"] = str(arq / "bin" / "python")
    session.env["ASGI_SQLA_TEST_BACKENDS"] = ",".join(DRIVERS)
    core = sorted(map(str, Path("tests").glob("test_*.py")))
    # What does not depend on the driver runs on every Python in the session tests, and is not repeated.
    chosen = " or ".join(("matrix", *DRIVERS))
    run_pytest(session, "-n", WORKERS, "-p", "no:randomly", "-r", "fE", "-k", chosen, "tests/matrix", *core)


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Check the style and the form of everything."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Check the types, twice over, and that the published ones are complete."""
    install_wheel(session, *EXTRAS)
    session.install(*group("types"), "nox")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "asgi_sqla", "--ignoreexternal")
    run_pytest(session, "-p", "no:cacheprovider", "tests/test_typed.py")


@nox.session(python=OLDEST)
def build(session: nox.Session) -> None:
    """Build what is published, and check that the index would render it."""
    session.install(*group("build"))
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))


@nox.session(python=OLDEST)
def newcomer(session: nox.Session) -> None:
    """Walk a newcomer's path with the wheel and its extras alone: the README's program, its migrations, its tests."""
    session.install(f"{build_wheel(session)}[cli,sqlite,testing]", "fastapi[standard]")
    session.run("python", "-P", "tests/newcomer.py")


@nox.session(python=OLDEST)
def demo(session: nox.Session) -> None:
    """Run the tour: a real server, a real client, every promise checked."""
    session.install(f"{build_wheel(session)}[demo]")
    session.run("python", "-P", "-m", "asgi_sqla.demo", *session.posargs)


@nox.session(python=OLDEST)
def benchmarks(session: nox.Session) -> None:
    """Measure us beside doing without us and beside the others; ``-- --short`` judges no time."""
    session.install(f"{build_wheel(session)}[postgresql,sqlite]", *group("benchmarks"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python=OLDEST)
def serializable(session: nox.Session) -> None:
    """Have clients contend for rows, lose connections, and read a million rows slowly; ``-- --short`` does it small."""
    session.install(f"{build_wheel(session)}[mysql,postgresql,sqlite]", *group("benchmarks"))
    for module in ("benchmarks.serializable", "benchmarks.chaos", "benchmarks.exports"):
        session.run("python", "-m", module, *session.posargs)


@nox.session(python=OLDEST)
def fuzz(session: nox.Session) -> None:
    """Play random programs against real databases, ``-- 20000`` of them, and print how many broke a promise."""
    install_wheel(session, *EXTRAS)
    session.run("python", "-P", "-m", "fuzz", *session.posargs, env={**INSTALLED, "PYTHONPATH": "tests"})


if __name__ == "__main__":
    nox.main()
