"""For your tests: a database that is as it was afterwards, and failures to order."""

from asgi_sqla.testing.capturing import captured_callbacks
from asgi_sqla.testing.failing import fail_commit, kill_connection
from asgi_sqla.testing.rolling import rolled_back
from asgi_sqla.testing.statements import Statements, assert_statements, count_statements

__all__ = [
    "Statements",
    "assert_statements",
    "captured_callbacks",
    "count_statements",
    "fail_commit",
    "kill_connection",
    "rolled_back",
]
