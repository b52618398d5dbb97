"""The same GraphQL schema for strawberry and for ariadne, over HTTP and over websockets.

``way`` is how its mutations get their unit: a "field" has a scope of its own, an "operation" has one for all of them,
and None leaves them to the unit of the request.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import ariadne
import strawberry
from ariadne.asgi import GraphQL as AriadneApp
from ariadne.asgi.handlers import GraphQLHTTPHandler, GraphQLTransportWSHandler
from sqlalchemy import select, text
from strawberry.asgi import GraphQL as StrawberryApp
from strawberry.dataloader import DataLoader
from strawberry.extensions import SchemaExtension
from strawberry.types.graphql import OperationType
from support.databases import Item
from websockets.asyncio.client import connect

from asgi_sqla import Database, current_unit, session_scope

LIBRARIES = ("strawberry", "ariadne")
SCHEMA = """
type Query { slow(number: Int!): Int!  shared(number: Int!): Int!  name(id: Int!): String }
type Mutation { add(name: String!, owner: Int): String  fail(name: String!): String }
type Subscription { added(names: [String!]!): String! }
"""


class Resolvers:
    """What the fields of the schema do."""

    def __init__(self, database: Database, way: str | None) -> None:
        self.database = database
        own: Callable[[Any], Any] = session_scope(database) if way == "field" else lambda function: function
        self.add = own(self._add)
        self.fail = own(self._fail)

    async def slow(self, number: int) -> int:
        """Wait in the database, in a scope of its own."""
        async with session_scope(self.database, read_only=True) as session:
            slow = text("SELECT CAST(:number AS integer) FROM pg_sleep(0.01)")
            return await session.scalar(slow, {"number": number}) or 0

    async def shared(self, number: int) -> int:
        """Wait in the database, in the session of the request."""
        slow = text("SELECT CAST(:number AS integer) FROM pg_sleep(0.05)")
        return await self.database.async_session.scalar(slow, {"number": number}) or 0

    async def names(self, ids: list[int]) -> list[str | None]:
        """Load many items at once, in a scope of its own: the function of a DataLoader."""
        async with session_scope(self.database, read_only=True) as session:
            found = (await session.execute(select(Item.id, Item.name).where(Item.id.in_(ids)))).all()
        return [dict(map(tuple, found)).get(one) for one in ids]

    async def added(self, names: list[str]) -> AsyncIterator[str]:
        """Write an item for each event, and yield the event when it is committed."""
        for name in names:
            async with session_scope(self.database) as session:
                session.add(Item(name=name))
            yield name
            await asyncio.sleep(0.05)

    async def _add(self, name: str, owner: int | None = None) -> str:
        self.database.async_session.add(Item(name=name, owner_id=owner))
        return "added"

    async def _fail(self, name: str) -> str:
        self.database.async_session.add(Item(name=name))
        await self.database.async_session.flush()
        raise ValueError("no")


def strawberry_app(database: Database, way: str | None) -> Any:  # noqa: C901  # a list of types
    """Return the schema's application in strawberry."""
    resolvers = Resolvers(database, way)

    class UnitPerMutation(SchemaExtension):
        async def on_execute(self) -> AsyncIterator[None]:
            if self.execution_context.operation_type is not OperationType.MUTATION:
                yield
                return
            async with session_scope(database):
                yield
                if self.execution_context.pre_execution_errors:
                    current_unit().rollback_only()
                    self.execution_context.result.data = None

    @strawberry.type
    class Query:
        @strawberry.field
        async def slow(self, number: int) -> int:
            return await resolvers.slow(number)

        @strawberry.field
        async def shared(self, number: int) -> int:
            return await resolvers.shared(number)

        @strawberry.field
        async def name(self, id: int, info: strawberry.Info) -> str | None:  # noqa: A002  # GraphQL's name
            return await info.context["names"].load(id)

    @strawberry.type
    class Mutation:
        @strawberry.mutation
        async def add(self, name: str, owner: int | None = None) -> str | None:
            return await resolvers.add(name, owner)

        @strawberry.mutation
        async def fail(self, name: str) -> str | None:
            return await resolvers.fail(name)

    @strawberry.type
    class Subscription:
        @strawberry.subscription
        async def added(self, names: list[str]) -> AsyncIterator[str]:
            async for name in resolvers.added(names):
                yield name

    class App(StrawberryApp[Any, Any]):
        async def get_context(self, request: Any, response: Any) -> Any:
            return {"names": DataLoader(resolvers.names)}

    extensions = [UnitPerMutation] if way == "operation" else []
    return App(strawberry.Schema(Query, Mutation, Subscription, extensions=extensions))


def ariadne_app(database: Database, way: str | None) -> Any:
    """Return the schema's application in ariadne."""
    resolvers = Resolvers(database, way)

    class UnitPerOperation(GraphQLHTTPHandler):
        async def execute_graphql_query(self, *args: Any, **kwargs: Any) -> Any:
            async with session_scope(database):
                success, result = await super().execute_graphql_query(*args, **kwargs)
                if result.get("errors"):
                    current_unit().rollback_only()
                    result["data"] = None
                return success, result

    query, mutation, subscription = ariadne.QueryType(), ariadne.MutationType(), ariadne.SubscriptionType()
    for kind, names in ((query, ("slow", "shared")), (mutation, ("add", "fail"))):
        for name in names:
            kind.set_field(name, _resolver(getattr(resolvers, name)))
    query.set_field("name", lambda _, info, id: info.context["names"].load(id))  # noqa: A006  # GraphQL's name
    subscription.set_source("added", lambda _, info, names: resolvers.added(names))
    subscription.set_field("added", lambda event, info, names: event)
    return AriadneApp(
        ariadne.make_executable_schema(SCHEMA, query, mutation, subscription),
        context_value=lambda request, _=None: {"request": request, "names": DataLoader(resolvers.names)},
        http_handler=UnitPerOperation() if way == "operation" else GraphQLHTTPHandler(),
        websocket_handler=GraphQLTransportWSHandler(),
    )


def _resolver(function: Callable[..., Any]) -> Callable[..., Any]:
    async def resolve(_root: Any, _info: Any, **arguments: Any) -> Any:
        return await function(**arguments)

    return resolve


def shop(library: str, database: Database, way: str | None) -> Any:
    """Return the application of ``library``."""
    return strawberry_app(database, way) if library == "strawberry" else ariadne_app(database, way)


class Socket:
    """A client of the protocol graphql-transport-ws."""

    def __init__(self, url: str) -> None:
        self._connect = connect(url.replace("http", "ws", 1), subprotocols=["graphql-transport-ws"])  # type: ignore[list-item]

    async def __aenter__(self) -> Self:
        self._socket = await self._connect.__aenter__()
        await self._send({"type": "connection_init"})
        assert json.loads(await self._socket.recv())["type"] == "connection_ack"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connect.__aexit__(*exc)

    async def ask(self, query: str, identifier: str = "1") -> AsyncIterator[dict[str, Any]]:
        """Yield each result of an operation."""
        await self._send({"id": identifier, "type": "subscribe", "payload": {"query": query}})
        async for told in self._socket:
            message = json.loads(told)
            if message["type"] == "complete":
                return
            payload = message["payload"]
            yield {"errors": payload} if message["type"] == "error" else payload
            if message["type"] == "error":
                return

    async def _send(self, message: dict[str, Any]) -> None:
        await self._socket.send(json.dumps(message))
