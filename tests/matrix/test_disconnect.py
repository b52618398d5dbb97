"""``cancel_on_disconnect=`` under every server, over a real socket: a client hangs up in the middle of a statement."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from matrix.report import not_applicable
from matrix.sites import SERVERS, Server, Site, wait_until

TRIO = "Under trio no request is cancelled: it has no task to cancel from outside."


@pytest.fixture(scope="module", params=[pytest.param(each, id=f"<{each}>") for each in SERVERS])
def server(request: pytest.FixtureRequest) -> Server:
    """Return each server in turn."""
    server: Server = request.param
    return server


@pytest.fixture(scope="module")
def site(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start the raw application with the switch, once for each server."""
    with Site(server, "matrix.applications.raw:app", tmp_path_factory.mktemp("site"), MATRIX_CANCEL="1") as site:
        yield site


@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.cell("Servers, raw", "cancel_on_disconnect= ({kind})", "{server}")
def test_a_client_that_hangs_up_ends_its_statement(server: Server, site: Site, kind: str, how: str) -> None:
    """No backend runs it, its connection is back, and to the server it is no error."""
    if server.trio:
        not_applicable(TRIO)
    with socket.create_connection(("127.0.0.1", site.port)) as client:
        client.sendall(f"GET /{kind}/sleep HTTP/1.1\r\nHost: site\r\n\r\n".encode())
        assert wait_until(lambda: site.connections("active") == 1)
        if how == "half closed":
            client.shutdown(socket.SHUT_WR)
            assert wait_until(lambda: site.connections("active") == 0)
        elif how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    assert wait_until(lambda: site.connections("active") == 0)
    assert wait_until(lambda: site.out() == 0)
    assert "Traceback" not in site.logged()
