"""A streaming standby of this process's PostgreSQL: a real replica, which lags as long as a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from support.clusters import cluster
from support.databases import postgresql_server, postgresql_url, postgresql_witness
from support.servers import wait_until
from support.services import missing


class Standby:
    """A standby that runs: its URL, and how far behind it is."""

    def __init__(self, url: str) -> None:
        self.url = url
        own = make_url(url).set(drivername="postgresql+psycopg")
        self._primary, self._own = postgresql_witness(), create_engine(own, poolclass=NullPool)

    def lag(self, delay: str) -> None:
        """Replay each commit only ``delay`` after it was made."""
        self.catch_up()
        self._do(f"ALTER SYSTEM SET recovery_min_apply_delay = '{delay}'", "SELECT pg_reload_conf()")
        assert wait_until(lambda: self._ask("SHOW recovery_min_apply_delay") == delay)

    def pause(self) -> None:
        """Replay what there is, and nothing more."""
        self.catch_up()
        self._do("SELECT pg_wal_replay_pause()")
        assert wait_until(lambda: self._ask("SELECT pg_get_wal_replay_pause_state()") == "paused")

    def catch_up(self) -> None:
        """Replay everything, from now on without a delay; return when that is done."""
        self._do(
            "SELECT pg_wal_replay_resume()",
            "ALTER SYSTEM SET recovery_min_apply_delay = 0",
            "SELECT pg_reload_conf()",
        )
        self.wait()

    def wait(self) -> None:
        """Return when everything that was written is replayed.

        A record of the server's own may have been written and not yet sent; a COMMIT after it sends both.
        """
        with self._primary.begin() as connection:
            connection.execute(text("SELECT pg_logical_emit_message(true, 'asgi_sqla', '')"))
        with self._primary.connect() as connection:
            committed = connection.scalar(text("SELECT pg_current_wal_flush_lsn()::text"))
        assert wait_until(lambda: self._ask(f"SELECT pg_last_wal_replay_lsn() >= '{committed}'"), 60)

    def _do(self, *statements: str) -> None:
        with self._own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.execute(text(statement))

    def _ask(self, statement: str) -> Any:
        with self._own.connect() as connection:
            return connection.scalar(text(statement))


@contextmanager
def running_standby() -> Iterator[Standby]:
    """Start a standby with the programs of the package, and stop it at the end; without them, skip."""
    server = postgresql_server()
    if not (server.bin_path / "pg_basebackup").exists():
        missing("no pg_basebackup beside the PostgreSQL of the package, so there is no standby")
    primary = make_url(postgresql_url())
    with cluster(server) as copy:
        copy.copy(str(primary.query["host"]))
        copy.start()
        yield Standby(primary.update_query_dict({"host": str(copy.folder)}).render_as_string(hide_password=False))
