"""Who is compared: each contender, where it is installed, and its process.

Holds: the table of contenders, their virtual environments, and talking to their processes.
Must not know: what is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.databases import Place

ROOT = Path(__file__).parent.parent
COMMON = ("uvicorn", "httptools", "uvloop", "sqlalchemy[asyncio]", "asyncpg", "psycopg[binary]", "fastapi")

VENVS = {
    "context-async": ("context-async-sqlalchemy", *COMMON),
    "fastapi-async": ("fastapi-async-sqlalchemy", *COMMON),
    "fastapi-sqla": ("fastapi-sqla[asyncpg]", *COMMON),
    "advanced-alchemy": ("advanced-alchemy", "litestar", *COMMON),
    "asgi": ("asgi-sqlalchemy", *COMMON),
    "original": ("FastAPI-SQLAlchemy", *COMMON),
}
"""What is installed together; none of it pinned, for the versions are printed."""


class Contender(NamedTuple):
    """One way to have a session in a request."""

    title: str
    framework: str
    sync: bool
    module: str
    venv: str | None = None
    """None is the environment of this process."""

    @property
    def kind(self) -> str:
        """Its framework, and how its handlers are written."""
        return f"{self.framework}, {'def' if self.sync else 'async def'}"


CONTENDERS = (
    Contender("asgi_sqla", "FastAPI", False, "ours"),
    Contender("Depends with yield", "FastAPI", False, "depends"),
    Contender('Depends with yield, scope="function"', "FastAPI", False, "function_scope"),
    Contender("context-async-sqlalchemy", "FastAPI", False, "context_async", "context-async"),
    Contender("context-async-sqlalchemy, its ASGI class", "FastAPI", False, "context_async_asgi", "context-async"),
    Contender("fastapi-async-sqlalchemy", "FastAPI", False, "fastapi_async", "fastapi-async"),
    Contender("fastapi-sqla", "FastAPI", False, "sqla", "fastapi-sqla"),
    Contender("asgi-sqlalchemy", "FastAPI", False, "asgi", "asgi"),
    Contender("asgi_sqla", "FastAPI", True, "ours_sync"),
    Contender("Depends with yield", "FastAPI", True, "depends_sync"),
    Contender("FastAPI-SQLAlchemy", "FastAPI", True, "original", "original"),
    Contender("asgi_sqla", "Starlette", False, "ours_starlette"),
    Contender("advanced-alchemy", "Starlette", False, "alchemy_starlette", "advanced-alchemy"),
    Contender("asgi_sqla", "Litestar", False, "ours_litestar"),
    Contender("advanced-alchemy", "Litestar", False, "alchemy_litestar", "advanced-alchemy"),
)


OWN = tuple(one for one in CONTENDERS if one.module.startswith(("ours", "depends")))
"""Ours, and what one does without any library."""
FEW = tuple(one for one in OWN if one.framework == "FastAPI")
"""The least that can be compared."""
PATIENCE = 300
"""Seconds in which a contender must answer."""


def install(folder: Path) -> None:
    """Make the virtual environment of each peer below ``folder``; one that is complete is kept."""
    for name, requirements in VENVS.items():
        done = folder / name / "requirements.txt"
        wanted = "\n".join(requirements)
        if done.exists() and done.read_text() == wanted:
            continue
        venv.create(folder / name, clear=True)
        python = folder / name / "bin" / "python"
        uv = (sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python))
        subprocess.run([*uv, *requirements], check=True)
        done.write_text(wanted)


class Process:
    """The running process of a contender."""

    def __init__(self, contender: Contender, place: Place, venvs: Path, pool: dict[str, Any], loop: str) -> None:
        self.contender = contender
        self._place = place
        python = sys.executable if contender.venv is None else str(venvs / contender.venv / "bin" / "python")
        url = place.sync_url if contender.sync else place.url
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.stage", contender.module, url, json.dumps(pool), loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )

    def do(self, command: str, **arguments: Any) -> Any:
        """Have it do something, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        patience = threading.Timer(PATIENCE, self._process.kill)
        patience.start()
        answer = self._process.stdout.readline()
        patience.cancel()
        if not answer:
            raise RuntimeError(f"{self.contender} ended; python -m benchmarks.stage {self.contender.module} says why")
        return json.loads(answer)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@contextmanager
def running(
    place: Place, venvs: Path, contenders: Sequence[Contender] = CONTENDERS, loop: str = "asyncio", **pool: Any
) -> Iterator[list[Process]]:
    """Run the process of each contender, on an event loop of the module ``loop``."""
    with ExitStack() as stack:
        processes = []
        for contender in contenders:
            process = Process(contender, place, venvs, pool, loop)
            stack.callback(process.stop)
            processes.append(process)
        yield processes
