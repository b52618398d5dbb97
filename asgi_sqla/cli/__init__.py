"""The command line: ``asgi-sqla``, and a group for a command line of your own."""

from asgi_sqla.cli.program import commands, main, syncdb
from asgi_sqla.cli.reporting import BEHIND, FAILED, LOCKED, REFUSED, USAGE

__all__ = ["BEHIND", "FAILED", "LOCKED", "REFUSED", "USAGE", "commands", "main", "syncdb"]
