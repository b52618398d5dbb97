"""A request whose client has gone before its response started: its application is cancelled.

A server says so only to who asks for the next message. So a request that takes longer is asked about: its messages are
read ahead, and kept for the application, until one says that the client has gone. What the application has asked for
by itself is left to it. Whatever the client has not heard of is then rolled back, unless a COMMIT has begun: that goes
on to its end, and decides as ever.

Holds: when messages are read ahead, and how many; when the application is cancelled, and what it may do after that.
Must not know: how a unit ends, or how a server is asked to end a statement.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from asgi_sqla.asgi.exchange import KEY, SETTLING, WAITING, Answered, is_of_ours
from asgi_sqla.engine.classification import chain, is_of_database
from asgi_sqla.session.guard import running_loop
from asgi_sqla.unit.calls import Calls
from asgi_sqla.unit.context import unit_of
from asgi_sqla.unit.logs import DEBUG, INFO, WARNING, tell

if TYPE_CHECKING:
    from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

    from asgi_sqla.asgi.request import Request

WATCH_AFTER = 0.1
"""Seconds that a request may take before its client is watched: most requests never pay for it."""
MOST_BYTES, MOST_MESSAGES = 2**16, 64
"""How much of a body is read ahead, beside its last message: the rest stays with the server, which stops reading."""
PAUSE, LONGEST_PAUSE = 0.02, 0.25
"""Seconds between two looks at an application that has not ended yet: the first pause, and the longest."""
TOLD = 0.2
"""Seconds that an application has to end by itself if it was waiting for this message."""
HELD_BACK = 1.0
"""Seconds that the message is kept from an application, at most, while its threads are interrupted."""
CUT_AFTER = 5.0
"""Seconds that a server has to end the statement of a thread; then the connection is cut, and the thread goes on."""

DISCONNECT = "http.disconnect"
_CAUSED = (Answered, asyncio.CancelledError)

_watches: set[asyncio.Task[None]] = set()
"""Those that go on; an event loop keeps only weak references to its tasks."""


class UntilDisconnect:
    """The application of a middleware, cancelled when the client of a request has gone before the response started."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __repr__(self) -> str:
        return repr(self._app)

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve a request inside its unit; anything else, and under trio, only call the application."""
        if scope["type"] != "http" or running_loop() is None:
            await self._app(scope, receive, send)
        else:
            # The first reader of such a request has its server ask the client for the body.
            expects = any(name.lower() == b"expect" for name, _ in scope.get("headers") or ())
            await Client(unit_of(scope[KEY]), receive, send, expects=expects).serve(self._app, scope)


class Client:
    """The client of one request: what it has sent, and whether it is still there."""

    _watch: asyncio.Task[None] | None = None
    """Reads ahead; once there is one, nothing else reads from the server."""
    _direct = _waiting = 0
    """How many calls of the application read from the server, and how many wait for what is read ahead."""
    _size = 0
    """How many bytes are kept."""
    _due = False
    """Whether the client is to be watched as soon as no call of the application reads."""
    _told = False
    """Whether the application was waiting for the message that the client has gone."""
    _acted = False
    """Whether anything was interrupted or cancelled: then no response may start."""
    _cancelled = _cancelled_twice = False
    """Whether the task was cancelled, and whether somebody else has cancelled it too."""
    _over = False
    """Whether the application has returned or raised."""

    def __init__(self, unit: Request, receive: Any, send: Any, *, expects: bool) -> None:
        self._unit = unit
        self._receive, self._send = receive, send
        self._expects = expects
        """Whether the client sends its body only when a server asks for it, as it does for the first reader."""
        self._kept: deque[Any] = deque()
        self._changed = asyncio.Event()
        """Set when a message is kept or taken, and when reading ahead ends."""
        task = asyncio.current_task()
        assert task is not None
        self._task: asyncio.Task[Any] = task
        self._cancellations = task.cancelling()

    async def serve(self, app: Any, scope: Any) -> None:
        """Run the application."""
        timer = self._task.get_loop().call_later(WATCH_AFTER, self._become_due)
        try:
            await app(scope, self.receive, self.send)
        except BaseException as exc:
            self._end()
            if not self._absorbs(exc):
                raise
        else:
            self._end()
        finally:
            timer.cancel()

    async def receive(self) -> Any:
        """Give the next message: a kept one, or one of the server's."""
        while True:
            if self._kept:
                return self._taken()
            if self._watch is not None and not self._over:
                self._waiting += 1
                try:
                    await self._change()
                finally:
                    self._waiting -= 1
                continue
            self._direct += 1
            try:
                message = await self._receive()
                self._expects = False
            finally:
                self._direct -= 1
                self._watch_if_due()
            if message["type"] != DISCONNECT or self._over:
                return message
            if self._watch is None:
                self._start(self._leave(message, waiting=True))

    def send(self, message: Any) -> Awaitable[None]:
        """Forward; after a cancellation, refuse."""
        if self._acted:
            raise Answered
        forwarded: Awaitable[None] = self._send(message)
        return forwarded

    def _become_due(self) -> None:
        self._due = True
        self._watch_if_due()

    def _watch_if_due(self) -> None:
        if self._due and not (self._expects or self._direct or self._over) and self._watch is None:
            self._start(self._observe())

    def _start(self, watch: Coroutine[Any, Any, None]) -> None:
        self._watch = asyncio.ensure_future(watch)
        _watches.add(self._watch)
        self._watch.add_done_callback(_watches.discard)

    async def _observe(self) -> None:
        """Read and keep messages until the client has gone; then leave."""
        told = await self._read_ahead()
        if told is None:  # from now on the application reads from the server again
            self._watch, self._due = None, False
            self._changed.set()
        else:
            await self._leave(told, waiting=self._waiting > 0)

    async def _read_ahead(self) -> Any:
        """Return the message that the client has gone; None if it cannot be had."""
        more = True
        try:
            while (message := await self._receive())["type"] != DISCONNECT:
                self._keep(message)
                if not more:  # a message after the last: no server does that, and it might do it for ever
                    return None
                more = message.get("more_body", False)
                while more and (self._size >= MOST_BYTES or len(self._kept) >= MOST_MESSAGES):
                    await self._change()
        except Exception as exc:
            tell(DEBUG, self._unit, "its messages cannot be read ahead: %r", exc)
            return None
        return message

    async def _leave(self, message: Any, *, waiting: bool) -> None:
        """Cancel the application, because the client has gone, and keep the ``message`` that says so.

        The statements of threads are interrupted first. A task that waits for one would not wait any longer if it was
        cancelled, and the thread would go on alone.
        """
        calls, pause, began = Calls(self._unit), PAUSE, self._task.get_loop().time()
        self._told = waiting
        while not self._over and self._unit._at in (WAITING, SETTLING):
            age, in_threads = self._task.get_loop().time() - began, calls.in_threads()
            if not (in_threads and age < HELD_BACK):
                self._keep_last(message)
            if self._unit._at is not SETTLING and not calls.commit():
                if in_threads:
                    self._interrupt(calls, cut=age > CUT_AFTER)
                elif not self._cancelled and not (waiting and age < TOLD):
                    self._cancel(calls)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
        self._keep_last(message)
        while self._acted and calls.in_threads():  # frameworks may leave a thread alone when they are cancelled
            calls.interrupt()
            await asyncio.sleep(LONGEST_PAUSE)

    def _interrupt(self, calls: Calls, *, cut: bool) -> None:
        if calls.cut() if cut else calls.interrupt():
            self._act()

    def _cancel(self, calls: Calls) -> None:
        self._act()
        calls.interrupt()  # a driver that is cancelled may leave its statement running, or be cut short as it asks
        self._cancelled = True
        self._task.cancel()

    def _act(self) -> None:
        if not self._acted:
            self._acted = True
            tell(INFO, self._unit, "its client has gone before its response started, so it is cancelled")

    def _end(self) -> None:
        """Record that the application has ended, and end the watch."""
        self._over = True
        if self._cancelled:
            self._cancelled_twice = self._task.uncancel() > self._cancellations
        if self._watch is not None and not self._acted:
            self._watch.cancel()
        self._changed.set()  # a task that outlives the application asks the server itself

    def _absorbs(self, raised: BaseException) -> bool:
        """Return whether what the application ``raised`` was caused by us, and ends with it."""
        if isinstance(raised, asyncio.CancelledError):
            return self._cancelled and not self._cancelled_twice
        if not self._acted or not is_of_ours(raised):
            return False
        if not any(is_of_database(one) or isinstance(one, _CAUSED) for one in chain(raised)):
            level = INFO if self._told else WARNING  # most applications that are told raise something
            tell(level, self._unit, "raised when its client had gone", exc_info=raised)
        return True

    def _keep(self, message: Any) -> None:
        body = message.get("body") or b""
        if not isinstance(body, bytes):  # a bytearray, which its sender may reuse
            message = {**message, "body": bytes(body)}
        self._size += len(body)
        self._kept.append(message)
        self._changed.set()

    def _keep_last(self, message: Any) -> None:
        if not self._kept or self._kept[-1]["type"] != DISCONNECT:
            self._kept.append(message)
            self._changed.set()

    def _taken(self) -> Any:
        message = self._kept[0]
        if message["type"] == DISCONNECT:  # as with a server, it is the answer to every further call
            return dict(message)
        self._kept.popleft()
        self._size -= len(message.get("body") or b"")
        self._changed.set()
        return message

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
