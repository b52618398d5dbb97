"""The blocks of the README's "Frameworks": each as a file of its own, served, and asked for an order."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from support.changed import python_path

from matrix.sites import PATIENCE, free_port, wait_until

README = Path(__file__).parent / "README.rst"
SECTION = re.compile(r"^Frameworks\n-+\n(.*?)(?=^\S[^\n]*\n---+\n|\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^(\w[^\n]*)\n~+\n+\.\. code-block:: python\n\n((?:    [^\n]*\n|\n)+)", re.MULTILINE)
BEFORE = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(unique=True)
"""
AFTER = """
Base.metadata.create_all(db.engine)
if "AsyncApp" in globals():  # the block leaves the OpenAPI document to its reader
    operation = {
        "operationId": f"{__name__}.create_order",
        "parameters": [{"name": "item", "in": "query", "schema": {"type": "string"}}],
        "responses": {"default": {"description": "any"}},
    }
    paths = {"/orders": {"post": operation}}
    app.add_api({"openapi": "3.0.3", "info": {"title": "shop", "version": "1"}, "paths": paths})
"""


def blocks() -> dict[str, str]:
    """Return the first block of each framework, by its title."""
    section = SECTION.search(README.read_text())
    return {title: textwrap.dedent(code) for title, code in BLOCK.findall(section[1])} if section else {}


@pytest.mark.parametrize("title", blocks())
@pytest.mark.cell("README", "{title}", "runs")
def test_a_block_serves_an_order(tmp_path: Path, title: str) -> None:
    """What the reader copies runs as it stands, and its write is in the database when the answer is there."""
    code = blocks()[title]
    (tmp_path / "shop.py").write_text(f"{BEFORE}\n{code}\n{AFTER}")
    port = free_port()
    target = "shop:application" if "\napplication = " in code else "shop:app"

    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "uvicorn", "--port", str(port), target]
        server = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env={"PYTHONPATH": python_path(tmp_path)}
        )
    try:
        started = wait_until(lambda: "Uvicorn running" in (tmp_path / "log").read_text(), PATIENCE)
        url = f"http://127.0.0.1:{port}/orders?item=tea"
        statuses = [httpx.post(url, timeout=PATIENCE).status_code for _ in range(2)] if started else []
        kept = rows(tmp_path / "shop.db") if started else []
    finally:
        server.terminate()
        server.wait(PATIENCE)
        print((tmp_path / "log").read_text())

    assert statuses == [201, 409 if "ERROR_RESPONSES" in code else 500]
    assert kept == ["tea"]


def rows(path: Path) -> list[str]:
    """Return the items ordered."""
    with closing(sqlite3.connect(path)) as connection:
        return [item for (item,) in connection.execute("SELECT item FROM orders")]
