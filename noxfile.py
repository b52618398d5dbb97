# /// script
# requires-python = ">=3.11"
# dependencies = ["nox>=2025.2.9"]
# ///
"""The one door to the tools: ``nox -l`` lists what it opens."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"  # uv takes a fifth of the processor time of pip
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = "CI" in os.environ

# What is imported is compiled once for each environment, also where the machine's settings keep Python from that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
OLDEST = PYTHONS[0]
MEASURED = OLDEST  # there the tracer doubles the processor time of a run; from 3.12 on it takes seven times as much
EXTRAS = ("cli", "demo", "migrations", "mysql", "postgresql", "settings", "sqlite", "telemetry", "testing")
"""What the tests exercise."""
MINUTES = (
    "the oldest Python takes five to eight minutes on two idle cores, and each newer one three to five; "
    "what is skipped is listed at the end of each, and why"
)
DRIVERS = ("psycopg2", "pymysql", "mysqldb", "aiomysql")
"""What the tests call each pair of drivers, of a sync and an async one, that the session tests does not run."""
SIDE_BY_SIDE = ("-n", "4", "--dist", "worksteal")
"""Processes of pytest: twice as many as cores, for much of what is tested is waiting; idle, they share."""
IN_THE_MATRIX = ("-n", "6")
"""There processes wait for processes; the tests of one site stay together."""
ALONE = ("-n", "0", "--maxfail", "3", "--last-failed", "--last-failed-no-failures", "none")
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


def make_environment(session: nox.Session, name: str, *packages: str) -> str:
    """Install ``packages`` that are at odds with the session's in an environment of their own; return its Python."""
    folder = Path(session.virtualenv.location).resolve() / name
    python = str(folder / "bin" / "python")
    if session.venv_backend == "uv":
        session.run_install("python", "-m", "venv", "--without-pip", str(folder))
        session.install("--python", python, *packages)
    else:
        session.run_install("python", "-m", "venv", str(folder))
        session.run_install(python, "-m", "pip", "install", "--quiet", *packages, external=True)
    return python


def run_pytest(session: nox.Session, *arguments: str, **environment: str) -> None:
    """Run pytest on the installed wheel."""
    run_again(session, ["pytest", *arguments, *session.posargs], {**INSTALLED, **environment})


def run_measured(session: nox.Session, *arguments: str, **environment: str) -> None:
    """Run pytest on the installed wheel; fail if it covers less of the core than ``pyproject.toml`` asks for."""
    file = str(Path(session.virtualenv.location).resolve() / "coverage")
    env = {**INSTALLED, "COVERAGE_FILE": file, **environment}
    session.run("coverage", "erase", env=env)
    run_again(session, ["coverage", "run", "-m", "pytest", *arguments], env)
    session.run("coverage", "combine", "--quiet", env=env)
    session.run("coverage", "report", env=env)


def run_again(session: nox.Session, command: list[str], env: dict[str, str]) -> None:
    """Run tests side by side; the few that fail run once more with nothing beside them, and have to pass then.

    Of ten thousand tests that measure what happens within milliseconds, one finds the machine busy now and then. Both
    results are in the output.
    """
    try:
        session.run(*command, env=env)
    except nox.command.CommandFailed:
        session.warn("what failed above runs again, by itself")
        session.run(*command, *ALONE, env=env)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests; on the oldest Python with the oldest dependencies, and with coverage.

    There all of the core runs. The newer Pythons share the core: each test runs on each, and each combination of its
    parameters on one of them at least. All share the annexes: each of their tests runs once.
    """
    if session.posargs:
        session.log("all combinations run of the tests that you name; what is skipped is listed at the end, and why")
    else:
        session.log(MINUTES)
    install_wheel(session, *EXTRAS)
    if session.python == OLDEST:  # the newest run on it in the session matrix
        session.install(*floors())
    if session.posargs:
        run_pytest(session, *SIDE_BY_SIDE)
    elif session.python == MEASURED:
        run_measured(session, *SIDE_BY_SIDE, ASGI_SQLA_TEST_SHARE=share_of(str(session.python)))
    else:
        run_pytest(session, *SIDE_BY_SIDE, ASGI_SQLA_TEST_SHARE=share_of(str(session.python)))


def share_of(python: str) -> str:
    """Return which part of the core's tests a Python runs, and of the annexes': see ``tests/support/shares.py``."""
    newer = [one for one in PYTHONS if one != OLDEST]
    core = f"{newer.index(python) + 1}/{len(newer)}" if python in newer else "1/1"
    return f"{core} {PYTHONS.index(python) + 1}/{len(PYTHONS)}"


def floors() -> list[str]:
    """Return the oldest dependencies we name, exactly: those of the package, and the drivers whose insides we use."""
    project = PROJECT["project"]
    named = [one.split(",")[0] for one in (*project["dependencies"], *project["optional-dependencies"]["postgresql"])]
    return [requirement.replace(">=", "==") for requirement in named]


@nox.session(python=OLDEST)
def matrix(session: nox.Session) -> None:
    """Run every framework, server, worker, neighbour and further driver for real, and print the matrix."""
    install_wheel(session, *EXTRAS)
    session.install(*group("matrix"))
    # Built on the spot, where the headers of the client library are; without it its row says so.
    session.install("mysqlclient", success_codes=[0, 1], silent=True)
    arq = make_environment(session, "arq", f"{build_wheel(session)}[postgresql]", *group("arq"))
    session.env["ASGI_SQLA_TEST_ARQ_PYTHON"] = arq
    older = make_environment(
        session, "older", f"{build_wheel(session)}[postgresql]", "sqlalchemy<2.1", *group("older-sqlalchemy")
    )
    session.env["ASGI_SQLA_TEST_SQLALCHEMY20_PYTHON"] = older
    session.env["ASGI_SQLA_TEST_BACKENDS"] = ",".join(DRIVERS)
    core = sorted(
        str(path) for path in Path("tests").glob("test_*.py") if re.search("backend|support.marks", path.read_text())
    )
    # What does not depend on the driver runs on every Python in the session tests, and is not repeated.
    chosen = " or ".join(("matrix", "neighbours", *DRIVERS))
    folders = ("tests/matrix", "tests/neighbours")
    run_pytest(session, *IN_THE_MATRIX, "-p", "no:randomly", "-r", "fE", "-k", chosen, *folders, *core)


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
    """Measure us beside doing without us and beside the others; ``-- --short`` judges no time, and adds an outage."""
    session.install(f"{build_wheel(session)}[postgresql,sqlite]", *group("benchmarks"))
    session.run("python", "-m", "benchmarks", *session.posargs)
    if "--short" in session.posargs:  # in CI, which so needs no environment more
        session.run("python", "-m", "benchmarks.outage", "--short")


@nox.session(python=OLDEST)
def serializable(session: nox.Session) -> None:
    """Have clients contend for rows, lose connections, and read a million rows slowly; ``-- --short`` does it small."""
    session.install(f"{build_wheel(session)}[mysql,postgresql,sqlite]", *group("benchmarks"))
    for module in ("benchmarks.serializable", "benchmarks.chaos"):
        session.run("python", "-m", module, *session.posargs)
    for module in ("benchmarks.exports", "benchmarks.events"):  # with engines as they are
        session.run("python", "-m", module, *[one for one in session.posargs if one != "--plain"])


@nox.session(python=OLDEST)
def outage(session: nox.Session) -> None:
    """Fail over, restart, fill the pool, while clients write and wait; ``-- --short`` does it small."""
    session.install(f"{build_wheel(session)}[postgresql]", *group("benchmarks"))
    session.run("python", "-m", "benchmarks.outage", *session.posargs)


@nox.session(python=OLDEST)
def fuzz(session: nox.Session) -> None:
    """Play random programs against real databases, ``-- 20000`` of them, and print how many broke a promise."""
    install_wheel(session, *EXTRAS)
    session.run("python", "-P", "-m", "fuzz", *session.posargs, env={**INSTALLED, "PYTHONPATH": "tests"})


@nox.session(python=OLDEST)
def screenshot(session: nox.Session) -> None:
    """Test what a browser sees in Chromium, which must be installed, and keep the picture of the page of ``live()``."""
    install_wheel(session, *EXTRAS)
    picture = str(Path("asgi_sqla/health/live.png").resolve())
    env = {**INSTALLED, "ASGI_SQLA_TEST_PICTURE": picture}
    session.run(
        "pytest", "tests/test_live.py", "tests/test_observe_listeners.py", "-k", "a_browser", *session.posargs, env=env
    )


if __name__ == "__main__":
    nox.main()
