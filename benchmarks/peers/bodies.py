"""The body a slow reader does not finish.

Must not know: any framework.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

PIECE = b"x" * 32_768
PIECES = 32


async def pieces() -> AsyncIterator[bytes]:
    """Yield a megabyte, which no socket buffer takes whole."""
    for _ in range(PIECES):
        yield PIECE


def sync_pieces() -> Iterator[bytes]:
    """Yield the same."""
    for _ in range(PIECES):
        yield PIECE
