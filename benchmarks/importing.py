"""What ``import asgi_sqla`` takes beyond what it needs.

Must not know: anything else that is measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from typing import NamedTuple

from benchmarks.contenders import ROOT
from benchmarks.rounds import Times
from benchmarks.scale import Scale

MODULES = ("fastapi", "starlette", "aiosqlite", "asyncpg", "psycopg", "psycopg2", "alembic", "pydantic", "sqlmodel")


class Import(NamedTuple):
    """What importing takes beyond what it needs, in microseconds, and what it should not have imported."""

    asgi_sqla: Times
    needed: float
    extra: list[str]


def importing(scale: Scale) -> Import:
    """Return how long ``import asgi_sqla`` takes after its requirements; of many interpreters."""
    # No collection, for whose import one of everything SQLAlchemy made falls into is chance.
    program = (
        "import gc, time, sys; gc.disable(); a = time.perf_counter(); "
        "import sqlalchemy, sqlalchemy.orm, sqlalchemy.ext.asyncio, anyio; "
        "b = time.perf_counter(); import asgi_sqla; c = time.perf_counter(); "
        f"print(b - a, c - b, *[name for name in {MODULES} if name in sys.modules])"
    )
    runs = []
    with tempfile.TemporaryDirectory() as cache:  # compiled once, by the first, as an installation is
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(scale.imports + 1):
            printed = subprocess.run(
                [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
            ).stdout.split()
            runs.append((float(printed[0]) * 1e6, float(printed[1]) * 1e6, printed[2:]))
    own = [run[1] for run in runs]
    return Import(Times(min(own), statistics.median(own)), min(run[0] for run in runs), runs[0][2])
