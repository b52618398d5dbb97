"""For your tests: a database that is unchanged afterwards, failures on request, and counted statements.

- ``rolled_back``: undoes everything that happens through a database in a block.
- ``captured_callbacks``: collects the callbacks of units of work; each is a ``Callback``.
- ``count_statements``, ``assert_statements``: collect the SQL of a block, and check how much there is.
- ``fail_commit``, ``kill_connection``: make a COMMIT fail, or lose a connection.
- ``Statements``: the list of the SQL.

The pytest plugin ``asgi_sqla.testing.plugin`` is installed with the package, and has a fixture for each.
"""

from asgi_sqla.testing.capturing import captured_callbacks
from asgi_sqla.testing.failing import fail_commit, kill_connection
from asgi_sqla.testing.rolling import rolled_back
from asgi_sqla.testing.statements import Statements, assert_statements, count_statements
from asgi_sqla.unit.callbacks import Callback

__all__ = [
    "Callback",
    "Statements",
    "assert_statements",
    "captured_callbacks",
    "count_statements",
    "fail_commit",
    "kill_connection",
    "rolled_back",
]
