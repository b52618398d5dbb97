"""The house: which room may import which, and what the door contains."""

from __future__ import annotations

import ast
import functools
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import pytest

import asgi_sqla

HOUSE = Path(asgi_sqla.__file__).parent

ORDER = "front > asgi > unit > session > engine > errors"
"""The wings from the roof down: each knows only those that come after it."""
FRONT = ("middleware", "scope", "database")
"""The front rooms; each knows only those that come after it."""
ANNEXES = (
    *(("__main__",), ("demo",), ("cli",), ("settings",), ("health", "telemetry")),
    ("models", "migrations", "observe", "testing"),
)
"""The rooms behind extras, from the last built to the first: each is above the door, and knows only those after it."""

FOREIGN = (
    ("aiohttp", "aiomysql", "aioodbc", "aiosqlite", "alembic", "asyncmy", "asyncpg", "click", "django", "falcon")
    + (
        "fastapi",
        "flask",
        "litestar",
        "opentelemetry",
        "oracledb",
        "psycopg",
        "psycopg2",
        "pydantic",
        "pymysql",
        "pyodbc",
        "quart",
    )
    + ("sanic", "sqlmodel", "starlette", "trio", "uvicorn")
)
"""What importing the package must never load."""

MAX_ROOM, MAX_FUNCTION = 200, 45
"""Lines of code without docstrings, comments and empty lines; and lines of a function."""


FILES = sorted(HOUSE.rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Return what is in a file, read when a test asks: each process that collects the tests imports this one."""
    return ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module of ours that a file imports: at its top, for types only, or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what they name"
            assert node.module is not None
            if node.module == "asgi_sqla":  # the door itself, or a room as a name
                yield from (f"asgi_sqla.{alias.name}" for alias in node.names)
            else:
                yield node.module


def arrows() -> set[tuple[str, str]]:
    """Return which room imports which: modules of a wing by their dotted names, others by their first name."""
    found: set[tuple[str, str]] = set()
    for path in FILES:
        parts = path.relative_to(HOUSE).with_suffix("").parts
        room = ".".join(parts) if parts[0] in ORDER.split(" > ") else parts[0]
        for module in imported(tree_of(path)):
            package, _, rest = module.partition(".")
            if package == "asgi_sqla":
                first, _, second = rest.partition(".")
                known = first in ORDER.split(" > ")
                to = f"{first}.{second.partition('.')[0]}" if known and second else first
                found.add(
                    (
                        room,
                        to if (HOUSE / f"{to.replace('.', '/')}.py").exists() or (HOUSE / to).is_dir() else "__init__",
                    )
                )
    return {(room, to) for room, to in found if room != to}


def test_arrows_point_down() -> None:
    """No wing imports one above it, no front room the next, and no annex one that was built on it."""
    wings = ORDER.split(" > ")
    floors = [*ANNEXES, ("__init__",), *((room,) for room in FRONT), *((wing,) for wing in wings[1:])]
    floor_of = {name: number for number, names in enumerate(floors) for name in names}
    upward = {
        (room, to)
        for room, to in arrows()
        for one, other in [(room.partition(".")[0], to.partition(".")[0])]
        if one != other and floor_of[one] >= floor_of[other]
    }
    assert upward == set()


def test_there_is_no_circle_of_rooms() -> None:
    """This includes imports inside a wing, for types only, and inside functions."""
    knows: dict[str, set[str]] = {}
    for room, to in arrows():
        knows.setdefault(room, set()).add(to)
    left = set(knows)
    while free := {room for room in left if not knows[room] & left}:
        left -= free
    assert left == set()


def test_the_door_holds_only_reexports() -> None:
    """``__init__`` is a docstring, imports, ``__all__``, and the version on demand."""
    body = tree_of(HOUSE / "__init__.py").body
    kinds = [type(node) for node in body]
    assert kinds == [ast.Expr, *[ast.ImportFrom] * (len(body) - 3), ast.Assign, ast.If]
    names = [alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(names) == sorted([*asgi_sqla.__all__, "TYPE_CHECKING"])


def test_the_version_is_that_of_the_installed_package() -> None:
    """It is read only on demand, because that can take longer than the import; any other name is an error."""
    program = (
        "import importlib.metadata as metadata; version = metadata.version; metadata.version = None; import asgi_sqla; "
        "metadata.version = version; print(asgi_sqla.__version__)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == metadata.version("asgi-sqla")
    with pytest.raises(AttributeError, match="module 'asgi_sqla' has no attribute 'Databse'") as raised:
        getattr(asgi_sqla, "Databse")  # noqa: B009  # a type checker knows that there is none
    assert raised.value.obj is asgi_sqla  # so that Python can say which name was meant


def test_all_is_sorted() -> None:
    """Constants come first, then classes, then functions, each in alphabetical order."""
    shape = {name: (not name.isupper(), not name[0].isupper(), name) for name in asgi_sqla.__all__}
    assert asgi_sqla.__all__ == sorted(asgi_sqla.__all__, key=lambda name: shape[name])


@pytest.mark.parametrize("name", sorted(set(asgi_sqla.__all__)))
def test_every_public_name_is_described(name: str) -> None:
    """Each of its public methods and properties has a docstring too."""
    thing = getattr(asgi_sqla, name)
    assert described(thing, name)
    if inspect.isclass(thing):
        own = [member for member in vars(thing) if member[0] != "_" and member not in vars(Exception)]
        assert [member for member in own if not described(inspect.getattr_static(thing, member), member)] == []


def described(thing: object, name: str) -> bool:
    """Return whether it has a docstring; a plain value has it below its assignment."""
    own = inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property)
    return bool(inspect.getdoc(thing)) if own else name in documented_values()


@functools.cache
def documented_values() -> set[str]:
    """Return every name whose assignment is followed by a docstring."""
    found: set[str] = set()
    for tree in map(tree_of, FILES):
        for node in ast.walk(tree):
            body = getattr(node, "body", [])
            for first, second in pairwise(body) if isinstance(body, list) else ():
                if isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant):
                    targets = first.targets if isinstance(first, ast.Assign) else [getattr(first, "target", None)]
                    found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def lines_of_code(path: Path) -> int:
    """Return how many lines are neither empty nor a comment nor part of a docstring."""
    said: set[int] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            said.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(path.read_text().splitlines(), 1)
    return sum(1 for number, line in lines if line.strip() and line.strip()[0] != "#" and number not in said)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_every_room_says_what_it_is(path: Path) -> None:
    """It has a docstring, a limited number of lines, and no function that is too long to read at once."""
    tree = tree_of(path)
    long = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
    ]
    assert ast.get_docstring(tree)
    assert (max(lines_of_code(path), MAX_ROOM), long) == (MAX_ROOM, [])


def test_importing_loads_no_framework_driver_or_extra() -> None:
    """The import loads no framework, no driver and no extra, and warns of nothing."""
    program = "import sys, asgi_sqla; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert set(ran.stdout.split()) & set(FOREIGN) == set()
    assert "asgi_sqla" in ran.stdout.split()


def test_importing_costs_little_beyond_sqlalchemy_and_anyio() -> None:
    """Of others' modules it imports hardly any; anyio's own come with the first call that needs them."""
    program = (
        "import sys, sqlalchemy.orm, sqlalchemy.ext.asyncio, anyio; before = set(sys.modules); import asgi_sqla; "
        "print(*sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    others = {name for name in ran.stdout.split() if name.partition(".")[0] != "asgi_sqla"}
    assert others <= {"_queue", "concurrent.futures.thread", "queue"}
