"""Which tests run on which databases, where it is not all of them."""

from __future__ import annotations

import pytest

from support.databases import backend_names

KINDS = ["sync", "async"]
POSTGRESQL = [name for name in backend_names() if name in ("asyncpg", "psycopg")]

on_postgresql = pytest.mark.parametrize("backend", POSTGRESQL, indirect=True)
on_one = pytest.mark.parametrize("backend", (POSTGRESQL or backend_names())[:1], indirect=True)
"""For what is about a framework or a server more than about databases."""
