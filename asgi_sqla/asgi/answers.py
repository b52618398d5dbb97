"""What the client is answered when the database or the application failed before a response started.

Holds: the plain answer, the ready mapping of exceptions to answers, and the reading of ``error_responses=``.
Must not know: units, sessions, or when an answer is due.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import exc

from asgi_sqla.engine.callables import takes
from asgi_sqla.engine.classification import ErrorKind, kind_for_answer
from asgi_sqla.engine.showing import hidden
from asgi_sqla.errors import ConfigurationError
from asgi_sqla.unit.logs import WARNING, tell

if TYPE_CHECKING:
    from asgiref.typing import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope

ErrorResponses: TypeAlias = Mapping[Any, int | Callable[[Any, Any, Any], Awaitable[None]]]
"""The keys are exception classes and ErrorKinds; a union of both would refuse a variable that holds only classes."""


class Answer:
    """An ASGI application that answers ``status``, from 400 to 599, in plain text."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.status: int = status
        self.headers: tuple[tuple[bytes, bytes], ...] = headers

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.headers})"

    async def __call__(self, scope: Scope, _receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Send the whole response; to a websocket it is a denial response, before the handshake is accepted."""
        from http import HTTPStatus  # imported only after a failure

        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        try:
            body = HTTPStatus(self.status).phrase.encode()
        except ValueError:
            body = b"Error"
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
        start: Any = {"type": f"{kind}.start", "status": self.status, "headers": [*headers, *self.headers]}
        end: Any = {"type": f"{kind}.body", "body": body}
        await send(start)
        await send(end)


FAILED = Answer(500)
LAST = Answer(500, ((b"connection", b"close"),))
UNAVAILABLE = Answer(503, ((b"retry-after", b"1"),))

ERROR_RESPONSES: ErrorResponses = MappingProxyType(
    {
        **{kind: UNAVAILABLE for kind in ErrorKind if kind.transient},
        ErrorKind.CONFLICT: 409,
        ErrorKind.STATEMENT_TIMEOUT: 504,
    }
)
"""Ready for ``error_responses=``: 409 for a conflict, 503 with ``Retry-After: 1`` for what is transient.

A statement that met its time limit is a 504. ``ErrorKind`` says which error is what.
"""

_COUNTS_AS: Mapping[ErrorKind, type[exc.DBAPIError]] = {
    ErrorKind.CONFLICT: exc.IntegrityError,
    **dict.fromkeys(set(ErrorKind) - {ErrorKind.CONFLICT, ErrorKind.POOL_EXHAUSTED}, exc.OperationalError),
}
"""SQLAlchemy's class of each kind, as drivers disagree: a deadlock is a bare DBAPIError under asyncpg."""


def _checked(given: Any) -> dict[type[BaseException] | ErrorKind, ASGI3Application]:
    """Return ``error_responses`` with every status replaced by an application."""
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"error_responses={hidden(given)} is not a mapping; write {{IntegrityError: 409}}")
    return {_checked_key(key): _checked_answer(answer) for key, answer in given.items()}


def _checked_key(key: Any) -> type[BaseException] | ErrorKind:
    if isinstance(key, ErrorKind):
        return key
    if isinstance(key, type) and (issubclass(key, Exception) or key is BaseException):
        return key  # nothing else is answered: KeyboardInterrupt and a cancellation are raised
    raise ConfigurationError(
        f"error_responses has the key {hidden(key)}; write an exception class, such as IntegrityError, or an "
        "ErrorKind, such as ErrorKind.CONFLICT"
    )


def _checked_answer(answer: Any) -> ASGI3Application:
    if isinstance(answer, int) and not isinstance(answer, bool) and 400 <= answer <= 599:
        return Answer(answer)
    if callable(answer) and not isinstance(answer, type) and takes(answer, "scope", "receive", "send"):
        return answer  # type: ignore[no-any-return]  # whether it is an ASGI application is seen only when it runs
    raise ConfigurationError(
        f"error_responses has the value {hidden(answer)}; write a status from 400 to 599, or an ASGI application, "
        "a callable of (scope, receive, send)"
    )


class Answers:
    """The checked ``error_responses``."""

    __slots__ = ("_mapping",)

    def __init__(self, error_responses: ErrorResponses | None) -> None:
        self._mapping = {} if error_responses is None else _checked(error_responses)

    def __bool__(self) -> bool:
        return bool(self._mapping)

    def knows(self, failure: BaseException) -> bool:
        """Return whether the class of ``failure``, a base class or its kind is mapped."""
        return self._find(failure) is not None

    async def give(self, failure: Exception, scope: Any, receive: Any, send: Any, unit: object) -> bool:
        """Answer the ``failure`` of ``unit``, once; return whether it is mapped, in which case it was logged too."""
        mapped = self._find(failure)
        if mapped is None:
            # The failure is raised to the server, which then drops the connection. The client or proxy must be told,
            # or its next request on the connection is lost. (HTTP/2 has no such header.)
            plain = LAST if str(scope.get("http_version")).startswith("1") and scope["type"] == "http" else FAILED
            await plain(scope, receive, send)
            return False
        tell(WARNING, unit, "answered from error_responses", exc_info=failure)
        sender = _ErrorsOnly(send)
        try:
            await mapped(scope, receive, sender)
        except Exception as exc:
            tell(WARNING, unit, "the answer %r to %s failed", mapped, type(failure).__name__, exc_info=exc)
        if not sender.started:
            await FAILED(scope, receive, send)
        return True

    def _find(self, failure: BaseException) -> ASGI3Application | None:
        keys: Sequence[Any] = type(failure).__mro__
        if (kind := kind_for_answer(failure)) is not None:
            # The most specific key counts: the kind comes after the class that its error has with most drivers, and
            # before that one's bases. What else a driver calls it comes first, such as ConnectionRefusedError.
            bases = _COUNTS_AS.get(kind, type(failure)).__mro__
            keys = (*(cls for cls in keys if cls not in bases), bases[0], kind, *bases[1:])
        return next((self._mapping[key] for key in keys if key in self._mapping), None)


class _ErrorsOnly:
    """A ``send`` that refuses to start a response below 400."""

    __slots__ = ("_send", "started")

    def __init__(self, send: Any) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Any) -> None:
        if message["type"].endswith("response.start"):
            if message["status"] < 400:
                raise ConfigurationError(
                    f"error_responses: an application answered {message['status']} for work that was rolled back; "
                    "answer with a status from 400 to 599"
                )
            self.started = True
        await self._send(message)
