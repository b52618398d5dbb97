"""Two questions of migration scripts.

Holds: whether this is SQLite, and whether a table or a column exists.
Must not know: Alembic, or why it is asked.
"""

from __future__ import annotations

from sqlalchemy import inspect
from sqlalchemy.engine import Connection, Engine


def is_sqlite(bind: Engine | Connection) -> bool:
    """Return whether ``bind`` connects to SQLite.

    - ``bind``: an engine or connection, such as ``op.get_bind()``.
    """
    return bind.dialect.name == "sqlite"


def exists_in_db(
    bind: Engine | Connection, table: str, column: str | None = None, *, schema: str | None = None
) -> bool:
    """Return whether a table or view exists, and in it a column if one is named.

    - ``bind``: an engine or connection, such as ``op.get_bind()``.
    - ``table``: the name of the table or view.
    - ``column``: the name of the column; default: none.
    - ``schema``: the name of the schema; default: that of the connection.
    """
    inspector = inspect(bind)
    if not (inspector.has_table(table, schema=schema) or table in inspector.get_view_names(schema=schema)):
        return False
    return column is None or any(each["name"] == column for each in inspector.get_columns(table, schema=schema))
