"""A request that has not asked for its unit of work, as most of those that use no database never do.

What is current for it is a stand-in that can make the unit, and its ``send`` notes what tells how far the response is.
So such a request makes one small object. Once there is a unit, every message and the end go through that.

Holds: the stand-in, and the path of a request that has neither retries nor a deadline.
Must not know: what a unit does, or how sessions are ended.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgi_sqla.asgi.exchange import COMPLETE, KEY, OVER, STARTED, Rules, send_nothing
from asgi_sqla.asgi.parts import TRAILERS, WHOLE
from asgi_sqla.asgi.request import Request
from asgi_sqla.engine.moment import moment
from asgi_sqla.unit.context import StandIn, enter, leave
from asgi_sqla.unit.stage import ENDED


class Arrival(StandIn):
    """A request, as it came. It has no ``__init__``, which would be a call for each request."""

    __slots__ = ("_last", "_made", "_receive", "_rules", "_scope", "_send", "_start")

    _last: str | None
    """The kind of the last message since the start that announced no more of the body."""
    _made: Any
    """The unit, which is a ``Request``; None until somebody asks for it."""
    _receive: Any
    _rules: Any
    """Read by a second layer of the middleware inside the first one."""
    _scope: Any
    """None as soon as the request ends."""
    _send: Callable[[Any], Awaitable[None]]
    _start: Any
    """The start of the response; None before it, and once the request has ended."""

    def unit(self) -> Request:
        """Return the unit of the request, made by the first call."""
        if self._made is None:
            made: Any = Request(self._rules, self._scope, self._receive, self._send)
            with moment:
                if self._made is None:
                    self._made = made
                    # Only now: another thread may be in ``send`` or at the end, which look for a unit after their step.
                    if self._start is not None:
                        made._start = self._start
                        made._at = COMPLETE if self._last in WHOLE or self._last == TRAILERS else STARTED
                    if self._scope is None:
                        made._stage, made._at = ENDED, OVER
        unit: Request = self._made
        return unit

    def send(self, message: Any) -> Awaitable[None]:
        """Note what tells how far the response is, and forward; a unit decides itself what it forwards."""
        if self._start is None:
            if message["type"] == "http.response.start":
                self._last = None
                self._start = message
        elif "more_body" not in message or not message["more_body"]:
            self._last = message["type"]  # what that means is asked when there is a unit
        if self._made is None:
            return self._send(message)
        with moment:  # a thread has made the unit meanwhile, which knows now how far the response is
            made: Request = self._made
        return made.send(message)


class Serving:
    """The part of the middleware that serves requests."""

    _rules: Rules
    _runs: Callable[[Any, Any, Any], Awaitable[None]]
    """The application, as it is called for a request."""
    _serve: Callable[[Rules, Any, Any, Any], Awaitable[None]] | None
    """What serves a request that has retries or a deadline."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: C901  # a helper would cost a call
        """Serve one ASGI connection: a request, a websocket or a lifespan; anything else passes through untouched.

        - ``scope``: the ASGI scope.
        - ``receive``: the ASGI ``receive`` callable.
        - ``send``: the ASGI ``send`` callable.
        """
        if scope["type"] != "http" or KEY in scope:
            await self._serve_other(scope, receive, send)
            return
        if self._serve is not None:
            await self._serve(self._rules, scope, receive, send)
            return
        scope[KEY] = arrival = Arrival()
        arrival._start = arrival._made = None
        arrival._scope, arrival._receive = scope, receive  # all four at once would make a tuple
        arrival._send, arrival._rules = send, self._rules
        token = enter(arrival)
        raised: BaseException | None = None
        try:
            try:
                await self._runs(scope, receive, arrival.send)
            except GeneratorExit:  # the event loop is gone: nothing can be awaited
                if arrival._made is not None:
                    arrival._made._abandon()
                raise
            except BaseException as exc:
                raised = exc
            if raised is not None or (arrival._made is not None and arrival._made._used):
                await (arrival._made or arrival.unit())._finish(raised)
        finally:
            try:  # cheaper than to look before
                leave(token)
                del scope[KEY]
            except (ValueError, KeyError) as exc:
                arrival.unit()._tell_lost(exc, scope)
            if arrival._start is None and arrival._made is None:  # a task that starts one now is told by the unit
                arrival.unit()
            # Contexts captured by a pooled connection or a long-lived task keep this object alive.
            arrival._scope = arrival._receive = arrival._rules = arrival._start = None
            if arrival._made is not None:
                arrival._made._release(scope, token)
            arrival._send = send_nothing

    async def _serve_other(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve what is not a request, and one that is served by another layer."""
        raise NotImplementedError
