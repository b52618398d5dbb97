"""Two questions that migration scripts ask.

Lives here: whether this is SQLite, and whether a table or a column is there.
Must not know: Alembic, or why it is asked.
"""

from __future__ import annotations

from sqlalchemy import inspect
from sqlalchemy.engine import Connection, Engine


def is_sqlite(bind: Engine | Connection) -> bool:
    """Return whether ``bind``, such as ``op.get_bind()``, leads to SQLite."""
    return bind.dialect.name == "sqlite"


def exists_in_db(
    bind: Engine | Connection, table: str, column: str | None = None, *, schema: str | None = None
) -> bool:
    """Return whether there is a table, or view, of that name, and in it a column if one is named."""
    inspector = inspect(bind)
    if not (inspector.has_table(table, schema=schema) or table in inspector.get_view_names(schema=schema)):
        return False
    return column is None or any(each["name"] == column for each in inspector.get_columns(table, schema=schema))
