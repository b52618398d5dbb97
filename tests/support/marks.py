"""Which tests run on which databases, if not on all of them."""

from __future__ import annotations

import pytest

from support.databases import ASKED_FOR, AWAITED, MARIADB_DRIVERS, PLAIN, POSTGRESQL_DRIVERS, backend_names

KINDS = ["sync", "async"]
NAMES = backend_names()
POSTGRESQL = [name for name in NAMES if name in POSTGRESQL_DRIVERS]
SERVERS = [name for name in NAMES if name != "sqlite"]
DEFERRING = [name for name in NAMES if name not in MARIADB_DRIVERS]

on_postgresql = pytest.mark.parametrize("backend", POSTGRESQL, indirect=True)
on_server = pytest.mark.parametrize("backend", SERVERS, indirect=True)
"""For concurrent writing transactions; SQLite allows only one."""
on_deferring = pytest.mark.parametrize("backend", DEFERRING, indirect=True)
"""For constraints that are checked at COMMIT; MariaDB has none."""
on_one = pytest.mark.parametrize("backend", NAMES if ASKED_FOR else POSTGRESQL[:1], indirect=True)
"""For tests of frameworks and servers rather than databases: they run on one, unless others are requested."""
on_one_postgresql = pytest.mark.parametrize("backend", POSTGRESQL[:1], indirect=True)
"""For such tests with statements of PostgreSQL's own."""

pipelined = pytest.mark.skipif(PLAIN, reason="ASGI_SQLA_TEST_PLAIN is set, and this is about pipelining")
"""For tests of what only ``pipelining=True`` does, or of the adapters that do it."""
alone = pytest.mark.skipif(AWAITED, reason="ASGI_SQLA_TEST_AWAITED is set, and this is about an end in a thread")
"""For tests of what only a unit does that is alone: a thread ends its sync session."""
WAYS = [pytest.param(True, marks=pipelined), pytest.param(False)]
"""Both values of ``pipelining=``, for cases that have to come out the same."""
