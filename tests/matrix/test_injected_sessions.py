"""A session that Litestar provides once for a websocket works for each of its messages."""

from typing import Any

import pytest
from litestar import Litestar, WebSocket, websocket
from litestar.di import NamedDependency, Provide
from litestar.exceptions import WebSocketDisconnect
from support.databases import Backend
from support.marks import KINDS
from test_handshake import CONNECT, GOODBYE, Socket, text, write

from asgi_sqla import Database, SQLAlchemyMiddleware


def litestar(database: Database, kind: str) -> Litestar:
    """Return an application whose handler gets its session injected."""

    async def provide_async() -> Any:
        return database.async_session

    def provide() -> Any:
        return database.session

    @websocket("/")
    async def endpoint(socket: WebSocket[Any, Any, Any], session: NamedDependency[Any]) -> None:
        await socket.accept()
        while True:
            try:
                name = await socket.receive_text()
            except WebSocketDisconnect:
                return
            await write(session, name)
            await socket.send_text("written")

    provided = Provide(provide_async) if kind == "async" else Provide(provide, sync_to_thread=True)
    return Litestar([endpoint], dependencies={"session": provided}, openapi_config=None)


@pytest.mark.parametrize("backend", ["sqlite", "psycopg"], indirect=True)  # no driver has a say in it
@pytest.mark.parametrize("kind", KINDS)
async def test_each_message_is_committed_and_an_idle_socket_holds_nothing(
    database: Database, backend: Backend, kind: str
) -> None:
    """The plain provider runs in a worker thread, which does not count as a second user of the session."""
    app: Any = SQLAlchemyMiddleware(litestar(database, kind), database)
    socket = await Socket(app, backend, [CONNECT, text("a"), text("b"), GOODBYE], database).run()

    assert socket.raised is None
    assert socket.sent == ["accept", "send", "send"]
    assert socket.rows_at_receive == [[], [], ["a"], ["a", "b"]]
    assert socket.out_at_receive == [0] * 4
    assert backend.names() == ["a", "b"]
