"""The house: which room may know which, and what the door holds."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import asgi_sqla

HOUSE = Path(asgi_sqla.__file__).parent

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("transient", "terms", "verdict", "urls", "shielding", "sqlite", "answers"),
    ("guard",),
    ("reading", "replicas", "configuration", "context", "steps", "watching", "loops"),
    ("engines", "callbacks"),
    ("ending", "sessions"),
    ("unit",),
    ("database",),
    ("scope",),
    ("exchange",),
    ("http", "websocket", "lifespan"),
    ("replay",),
    ("middleware",),
    ("__init__",),
    ("models", "migrations", "testing"),
    ("settings",),
    ("cli",),
    ("demo",),
)
"""The rooms from the cellar up: each knows only rooms on floors below its own."""

FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

FOREIGN = (
    ("aiohttp", "aiomysql", "aioodbc", "aiosqlite", "alembic", "asyncmy", "asyncpg", "click", "django", "falcon")
    + ("fastapi", "flask", "litestar", "oracledb", "psycopg", "psycopg2", "pydantic", "pymysql", "pyodbc", "quart")
    + ("sanic", "sqlmodel", "starlette", "trio", "uvicorn")
)
"""What importing the package must never bring along."""

MAX_ROOM, MAX_FUNCTION = 250, 45


def room_of(path: Path) -> str:
    """Return the room a file belongs to: a module, or a package that is one room with several walls."""
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


FILES = sorted(HOUSE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module of ours a file imports: at its top, for types only, or inside a function."""
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
    """Return which room knows which."""
    found: set[tuple[str, str]] = set()
    for path, tree in TREES.items():
        for module in imported(tree):
            package, _, rest = module.partition(".")
            if package == "asgi_sqla":
                to = rest.partition(".")[0]
                found.add((room_of(path), to if to in FLOOR_OF else "__init__"))
    return {(room, to) for room, to in found if room != to}


def test_every_room_has_a_floor() -> None:
    """A new room is given its place here first."""
    assert {room_of(path) for path in FILES} - FLOOR_OF.keys() == set()


def test_arrows_point_down() -> None:
    """No room knows one on its own floor or above, so there is no circle."""
    assert {(room, to) for room, to in arrows() if FLOOR_OF[room] <= FLOOR_OF[to]} == set()


def test_the_door_holds_only_reexports() -> None:
    """``__init__`` is a docstring, imports and ``__all__``."""
    body = TREES[HOUSE / "__init__.py"].body
    kinds = [type(node) for node in body]
    assert kinds == [ast.Expr, *[ast.ImportFrom] * (len(body) - 2), ast.Assign]
    names = [alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(names) == sorted(asgi_sqla.__all__)


def test_all_is_sorted() -> None:
    """Constants, classes, then functions, each by the alphabet."""
    shape = {name: (not name.isupper(), not name[0].isupper(), name) for name in asgi_sqla.__all__}
    assert asgi_sqla.__all__ == sorted(asgi_sqla.__all__, key=lambda name: shape[name])


@pytest.mark.parametrize("name", sorted(set(asgi_sqla.__all__)))
def test_every_public_name_is_described(name: str) -> None:
    """And so is each of its public methods and properties."""
    thing = getattr(asgi_sqla, name)
    assert described(thing, name)
    if inspect.isclass(thing):
        own = [member for member in vars(thing) if member[0] != "_" and member not in vars(Exception)]
        assert [member for member in own if not described(inspect.getattr_static(thing, member), member)] == []


def described(thing: object, name: str) -> bool:
    """Whether it has a docstring, or for a plain value one below it in the source."""
    own = inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property)
    return bool(inspect.getdoc(thing)) if own else name in documented_values()


def documented_values() -> set[str]:
    """Return every name whose assignment is followed by a docstring, wherever in the house."""
    found: set[str] = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            body = getattr(node, "body", [])
            for first, second in pairwise(body) if isinstance(body, list) else ():
                if isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant):
                    targets = first.targets if isinstance(first, ast.Assign) else [getattr(first, "target", None)]
                    found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_every_room_says_what_it_is(path: Path) -> None:
    """A docstring at its head, no more than so many lines, and no function longer than one can see at once."""
    tree = TREES[path]
    long = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
    ]
    assert ast.get_docstring(tree)
    assert (len(path.read_text().splitlines()) <= MAX_ROOM, long) == (True, [])


def test_importing_brings_nothing_along() -> None:
    """No framework, no driver, nothing of an extra; and nothing warns."""
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
