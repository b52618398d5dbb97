"""Whether a transaction of SQLite has only read, so that its end waits for no lock and no disk.

SQLite knows, and Python's sqlite3 has no way to ask. So what every cursor executes is noted: after BEGIN DEFERRED a
SELECT takes no lock that COMMIT would have to wait for, and a function that it calls changes no row in silence. A
checkpoint of the write-ahead log is only made by who has written.

Holds: what is noted, for every driver.
Must not know: drivers, cursors, or what is decided on it.
"""

from __future__ import annotations


class Reads:
    """A connection that notes whether its transaction only reads."""

    only_reads: bool = False
    """Whether every statement of the transaction, begun by BEGIN DEFERRED, is a SELECT of SQLAlchemy's."""
    changes: int = 0
    """How many rows the connection had changed when the transaction began; a function in a SELECT may change some."""

    def note_begin(self, total_changes: int) -> None:
        """Record a BEGIN DEFERRED, and how many rows the connection had changed before."""
        self.only_reads, self.changes = True, total_changes

    def note(self, statement: str) -> None:
        """Record a statement that is about to be executed."""
        if statement[:6] != "SELECT":
            self.note_other()

    def note_other(self) -> None:
        """Record that something is done that is no SELECT."""
        self.only_reads = False

    def has_only_read(self, total_changes: int) -> bool:
        """Return whether the transaction only read, if that is how many rows the connection has changed."""
        return self.only_reads and total_changes == self.changes
