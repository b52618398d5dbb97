"""The command line ``asgi-sqla``, and its commands for a command line of your own.

- ``main``: the click group of ``asgi-sqla``.
- ``commands``: returns a click group of the commands for your ``Migrations``.
- ``syncdb``: migrates the database and prints the result, for a command of your own.
- ``FAILED``, ``USAGE``, ``BEHIND``, ``REFUSED``, ``LOCKED``: the exit codes.
"""

from asgi_sqla.errors import needing

with needing("cli", "asgi_sqla.cli"):
    from asgi_sqla.cli.program import commands, main, syncdb
    from asgi_sqla.cli.reporting import BEHIND, FAILED, LOCKED, REFUSED, USAGE

__all__ = ["BEHIND", "FAILED", "LOCKED", "REFUSED", "USAGE", "commands", "main", "syncdb"]
