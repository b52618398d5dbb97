"""The tour: what the shop is asked, what is promised, and whether the promise is kept.

Holds: the steps, in their order.
Must not know: how it is printed, or how the shop is served.
"""

from __future__ import annotations

import asyncio
import json
import socket
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from asgi_sqla import session_scope
from asgi_sqla.demo.application import DailyReport, close_the_day
from asgi_sqla.demo.clients import Seen, ask, stalled_readers
from asgi_sqla.demo.report import Report
from asgi_sqla.demo.witness import NOTHING_OUT, Rows, Sight, Witness


class Tour:
    """Goes through the shop at ``host`` and ``port``, and tells ``report`` what it saw."""

    def __init__(self, host: str, port: int, *, witness: Witness, report: Report) -> None:
        self._host = host
        self._port = port
        self._witness = witness
        self._report = report
        self._client: httpx.AsyncClient

    async def run(self) -> None:
        """Take every step; one that raises is a broken promise, and the next is taken anyway."""
        steps = {
            "A POST, answered by an async handler": self.commits,
            "A POST, answered by a sync handler in a worker thread": self.commits_in_a_thread,
            "A handler that inserts, and then returns 422": self.rolls_back_an_error,
            "A COMMIT that fails: there is no such product, and the constraint is deferred": self.fails_to_commit,
            "Four readers that stop reading, and pools of two connections": self.waits_for_no_reader,
            "A websocket: each message is a unit of work": self.commits_each_message,
            "A background task, after the response": self.works_after_the_response,
            "A job outside any request, in a session_scope()": self.runs_a_job,
            "A job that raises": self.fails_in_a_job,
        }
        url = f"http://{self._host}:{self._port}"
        async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as self._client:
            for title, step in steps.items():
                self._report.step(title)
                await self._take(step)

    async def _take(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(10):
                await step()
        except Exception as exc:
            self._report.promise(f"the step completes without {type(exc).__name__}", kept=False)
            traceback.print_exc()

    async def commits(self) -> None:
        """Place an order with the async handler."""
        await self._order("POST /orders", {"product": 1, "quantity": 2})

    async def commits_in_a_thread(self) -> None:
        """Place an order with the sync handler."""
        await self._order("POST /orders/by-phone", {"product": 2, "quantity": 1})

    async def _order(self, request: str, order: dict[str, int]) -> None:
        before = self._witness.look().rows
        seen = await self._ask(request, order)
        self._show(seen.sight, ", when the status came")
        kept = (seen.status, seen.sight) == (201, (before.more(orders=1), NOTHING_OUT))
        self._report.promise("the row is committed before the client is told 201", kept)

    async def rolls_back_an_error(self) -> None:
        """Place an order that the handler inserts and then refuses."""
        before = self._witness.look().rows
        seen = await self._ask("POST /orders", {"product": 1, "quantity": 1000})
        sight = self._show(self._witness.look())
        self._report.promise("a returned error leaves no row", (seen.status, sight.rows) == (422, before))

    async def fails_to_commit(self) -> None:
        """Place an order that only COMMIT can refuse."""
        before = self._witness.look().rows
        self._witness.failures.clear()
        seen = await self._ask("POST /orders", {"product": 404, "email": "ann@example.org"})
        rows = self._show(await self._witness.wait_for(before.more(mails=1), seconds=0.1)).rows
        failures = self._witness.failures
        self._report.saw("log", "; ".join(str(failure).partition("\n")[0] for failure in failures) or "nothing")
        self._report.promise("the client is told 409, never 201", seen.status == 409)
        self._report.promise("nothing is kept", rows.orders == before.orders)
        self._report.promise("the background task of that response does not run", rows.mails == before.mails)
        self._report.promise("the failure is in the log, once, with its traceback", len(failures) == 1)

    async def waits_for_no_reader(self) -> None:
        """Stall as many readers of a large body as there are connections, and ask again."""
        paths = ("/catalogue", "/catalogue/sync", "/catalogue", "/catalogue/sync")
        async with stalled_readers(self._host, self._port, paths) as heads:
            self._report.saw("readers", f"GET /catalogue 4 times, async and sync, 20 MB each: {heads}")
            answers = [await self._ask("GET /orders/count"), await self._ask("GET /orders")]
            sight = self._show(self._witness.look(), ", while the four wait")
        self._report.promise("a slow reader holds no connection", sight.out == NOTHING_OUT)
        served = [seen.status for seen in answers] == [200, 200]
        self._report.promise("others are served meanwhile, by async and sync handlers", served)

    async def commits_each_message(self) -> None:
        """Exchange messages, and look at the database between them."""
        before = self._witness.look().rows
        with socket.create_connection((self._host, self._port)) as connection:
            async with connect(f"ws://{self._host}:{self._port}/till", sock=connection) as till:
                after_each = [await self._say(till, before.more(orders=number)) for number in (1, 2, 3)]
                self._show(self._witness.look(), ", while the socket is open and idle")
        rows = [sight.rows for sight in after_each]
        committed = rows == [before.more(orders=number) for number in (1, 2, 3)]
        self._report.promise("each message is committed before the next", committed)
        self._report.promise(
            "an idle socket holds no connection", all(sight.out == NOTHING_OUT for sight in after_each)
        )

    async def _say(self, till: ClientConnection, expected: Rows) -> Sight:
        message = json.dumps({"product": 2, "quantity": 1})
        await till.send(message)
        answer = json.loads(await till.recv())
        sight = await self._witness.wait_for(expected)
        self._report.saw("message", f"{message} is answered {json.dumps(answer)}, then {sight.rows.orders} orders")
        return sight

    async def works_after_the_response(self) -> None:
        """Place an order that is confirmed by a background task."""
        before = self._witness.look().rows
        seen = await self._ask("POST /orders", {"product": 2, "email": "ann@example.org"})
        expected = before.more(orders=1, mails=1)
        sight = self._show(await self._witness.wait_for(expected), ", a moment after the response")
        self._report.promise("what the task wrote is committed", (seen.status, sight.rows) == (201, expected))
        self._report.promise("the task gives its connection back", sight.out == NOTHING_OUT)

    async def runs_a_job(self) -> None:
        """Run a job that succeeds."""
        before = self._witness.look().rows
        self._report.saw("called", "await close_the_day()")
        self._report.saw("returned", f"{await close_the_day()}, the number of orders")
        sight = self._show(self._witness.look())
        self._report.promise("a job that returns is committed", sight == (before.more(reports=1), NOTHING_OUT))

    async def fails_in_a_job(self) -> None:
        """Run a job that inserts and then raises."""
        before = self._witness.look().rows
        self._report.saw("called", "async with session_scope() as session: INSERT, then raise LookupError")
        try:
            await self._fail_to_close_the_day()
        except LookupError as exc:
            self._report.saw("raised", repr(exc))
        sight = self._show(self._witness.look())
        self._report.promise("a job that raises leaves nothing", sight == (before, NOTHING_OUT))

    async def _fail_to_close_the_day(self) -> None:
        async with session_scope() as session:
            session.add(DailyReport(orders=0))
            await session.flush()
            raise LookupError("no such day")

    async def _ask(self, request: str, body: Any = None) -> Seen:
        """Ask, and show what was asked and what the client saw."""
        self._report.saw("asked", request if body is None else f"{request} {json.dumps(body)}")
        seen = await ask(self._client, self._witness, request, body)
        self._report.saw("client", seen)
        return seen

    def _show(self, sight: Sight, when: str = "") -> Sight:
        """Show the rows of the database, and how many connections are checked out."""
        self._report.saw("database", f"{sight.rows}{when}")
        self._report.saw("pools", sight.out)
        return sight
