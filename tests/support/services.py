"""Servers that the tests do not start themselves: a MariaDB and a Redis, if there are any."""

from __future__ import annotations

import functools
import os
import socket
from typing import NoReturn

import pytest
from sqlalchemy import URL, make_url


def missing(reason: str) -> NoReturn:
    """Skip the test with a reason; with ``CI`` set nothing may be missing, so fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def answers(host: str, port: int) -> bool:
    """Return whether something listens at the address."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


@functools.cache
def mariadb_url() -> URL | None:
    """Return where a MariaDB is, if there is one."""
    given = os.environ.get("ASGI_SQLA_TEST_MARIADB_URL")
    if given is None and answers("127.0.0.1", 3306):
        given = "mysql://root@127.0.0.1:3306/test"
    return make_url(given) if given else None


@functools.cache
def redis_url() -> str | None:
    """Return where a Redis is, if there is one, without a database number."""
    given = os.environ.get("ASGI_SQLA_TEST_REDIS_URL")
    if given is None and answers("127.0.0.1", 6379):
        given = "redis://127.0.0.1:6379"
    return given.rstrip("/") if given else None
