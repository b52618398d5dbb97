"""Writes a migrations directory.

Holds: the content of a new one.
Must not know: databases.
"""

from __future__ import annotations

from pathlib import Path

from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError

ENV = '''"""Run by Alembic for every command; see asgi_sqla.migrations.run_env."""

from {module} import {name}

from asgi_sqla.migrations import run_env

run_env({argument})
'''

INI = """# For the plain alembic command: alembic -c {location}/alembic.ini upgrade heads
[alembic]
script_location = %(here)s
prepend_sys_path = .
path_separator = os

[loggers]
keys = root,alembic

[handlers]
keys = console

[formatters]
keys = plain

[logger_root]
level = WARNING
handlers = console

[logger_alembic]
level = INFO
handlers =
qualname = alembic

[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain

[formatter_plain]
format = %(levelname)-5.5s [%(name)s] %(message)s
"""

SCRIPT = '''"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: str | tuple[str, ...] | None = ${repr(down_revision)}
branch_labels: str | tuple[str, ...] | None = ${repr(branch_labels)}
depends_on: str | tuple[str, ...] | None = ${repr(depends_on)}


def upgrade() -> None:
    """Change the schema."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Undo that."""
    ${downgrades if downgrades else "pass"}
'''


def scaffold(location: Path, reference: str, metadata: str | None = None) -> list[Path]:
    """Write a directory of migrations with ``env.py``, script template and ``alembic.ini``; return the files written.

    Existing files are left alone.

    - ``location``: the directory to write.
    - ``reference``: the ``Migrations`` as "package.module:name", or the ``Database``.
    - ``metadata``: the base class of the models in the same form, if ``reference`` is a ``Database``; default: none.

    Raises ConfigurationError for a wrong reference.
    """
    files = {
        "env.py": _env(reference, metadata),
        "script.py.mako": SCRIPT,
        "alembic.ini": INI.format(location=location),
    }
    (location / "versions").mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in files.items():
        path = location / name
        if not path.exists():
            path.write_text(content)
            written.append(path)
    return written


def _env(reference: str, metadata: str | None) -> str:
    module, name = _split(reference)
    if metadata is None:
        return ENV.format(module=module, name=name, argument=name)
    base_module, base = _split(metadata)
    argument = f"{name}, {base}.metadata"
    if base_module == module:
        return ENV.format(module=module, name=f"{base}, {name}", argument=argument)
    return ENV.format(module=module, name=f"{name}\nfrom {base_module} import {base}", argument=argument)


def _split(reference: str) -> tuple[str, str]:
    module, colon, name = reference.partition(":")
    if not (module and colon and name.isidentifier()):
        raise ConfigurationError(f'{hidden(reference)} cannot be imported; write "package.module:name"')
    return module, name
