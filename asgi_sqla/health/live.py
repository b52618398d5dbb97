"""``live()``: an ASGI application that shows the pools, the running units and the last reports, for development.

Holds: what it keeps of the reports, and its answer to a request.
Must not know: how the page looks.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from asgi_sqla.database import Database
from asgi_sqla.engine.pools import PoolStatus
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.health.page import POLICY, State, render
from asgi_sqla.middleware import Application
from asgi_sqla.observe import Report
from asgi_sqla.observe.adding import add_observer
from asgi_sqla.session.holders import Holder

KEPT = 100
"""How many reports are kept; older ones are dropped."""
SHORTEST, LONGEST = 1, 3600
"""Seconds between two loads of a page that reloads itself."""


def live(database: Database, *more: Database) -> Application:
    """Return an ASGI application: one page of the pools, the running units and the last hundred reports.

    It is for development: everybody who can reach it reads the texts of statements and the paths of requests, though
    neither parameters nor passwords. Nothing serves it until you mount it, at any path. From this call on each
    ``Database`` makes reports of its units. The page reloads itself with ``?reload=5``, in seconds; it has no script.

    - ``database``: the ``Database`` to show.
    - ``*more``: others, for the same page.

    Raises ConfigurationError for what is not a ``Database``.
    """
    return _Page((database, *more))


class _Page:
    """The application, which is also the observer of its databases."""

    def __init__(self, databases: tuple[Database, ...]) -> None:
        for one in databases:
            if not isinstance(one, Database):
                raise ConfigurationError(f"live({hidden(one)}) shows no Database; write live(db)")
        self._databases = tuple(dict.fromkeys(databases))
        self._reports: deque[Report] = deque(maxlen=KEPT)
        keep = self._reports.append  # one object for all: a unit that used several is kept once
        for one in self._databases:
            add_observer(one, keep)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002  # a request has no body
        if scope["type"] != "http":
            raise ConfigurationError(f"live() answers requests, and this is a {scope['type']}; mount it at a path")
        allowed = scope["method"] in ("GET", "HEAD")
        body = render(self._state(), _reload_of(scope["query_string"])) if allowed else b"Method Not Allowed"
        headers = [
            (b"content-type", b"text/html; charset=utf-8" if allowed else b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"content-security-policy", POLICY),
            (b"referrer-policy", b"no-referrer"),
            (b"x-content-type-options", b"nosniff"),
            *(() if allowed else ((b"allow", b"GET, HEAD"),)),
        ]
        await send({"type": "http.response.start", "status": 200 if allowed else 405, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _state(self) -> State:
        return State(
            time.time(),
            [_now(one) for one in self._databases],
            list(self._reports)[::-1],
        )


def _now(one: Database) -> tuple[str, list[PoolStatus], list[Holder]]:
    name = repr(one).removeprefix("<Database ").removesuffix(">")
    return (name, one.pools(), one.holders()) if one.configured else (name, [], [])


def _reload_of(query: bytes) -> int | None:
    """Return the seconds of ``?reload=``, within bounds; None if there are none."""
    name, _, seconds = query.partition(b"=")
    return min(max(int(seconds), SHORTEST), LONGEST) if name == b"reload" and seconds.isdigit() else None
