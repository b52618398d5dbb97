"""Every framework, wrapped as its users would, under every server: one table of the same expectations.

A framework is excused from a row only if it cannot keep the promise, or has no means for it. Each excuse is beside the
framework's name, and is tested if that is possible.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from matrix.report import not_applicable
from matrix.sites import PATIENCE, SERVERS, Server, Site, wait_until

KINDS = pytest.mark.parametrize("kind", ["async", "sync"])

# The excuses that several frameworks share; each becomes a footnote.
OUTSIDE_CORS = "Wrapped outermost, our own answer passes outside of the framework's CORS headers."
NO_CORS = "The framework has no place for ASGI middleware inside of its CORS headers, or sends none."
NO_HOOK = "The framework has no dependencies or request hooks of its own."
ON_THE_LOOP = "The framework runs sync handlers on the event loop: while one waits, nothing else is served."
NO_SYNC_STREAM = "The framework streams from coroutines only."
NO_BACKGROUND = "The framework has no background tasks of a request."
NO_WEBSOCKET = "The framework serves no websockets."
OUTLIVES = "Background tasks outlive the request here: they open a session_scope(), and are told so if they do not."
STARTED_BEFORE = "The framework starts background tasks before the response, whatever becomes of that."
READS_AHEAD = "The framework reads messages ahead, so a conversation is one unit: open a session_scope() per message."


@dataclass(frozen=True)
class Framework:
    """A framework, whether it has a place for the middleware, and what it is excused from."""

    name: str
    own_place: bool = False
    excused: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return self.name.replace(" ", "_")


FRAMEWORKS = (
    Framework("starlette", own_place=True, excused={"hook": NO_HOOK}),
    Framework("fastapi", own_place=True),
    Framework("litestar", own_place=True),
    Framework(
        "quart",
        own_place=True,
        excused={
            "cors": NO_CORS,
            "sync background": "Quart runs a sync handler in a thread, from which no background task can be started.",
            "background in the unit": OUTLIVES,
            "background after COMMIT": STARTED_BEFORE,
            "message": READS_AHEAD,
        },
    ),
    Framework(
        "blacksheep",
        excused={
            "sync wait": ON_THE_LOOP,
            "sync stream": NO_SYNC_STREAM,
            "background": NO_BACKGROUND,
            "cors": NO_CORS,
        },
    ),
    Framework(
        "falcon",
        excused={
            "sync stream": NO_SYNC_STREAM,
            "sync background": "Falcon's schedule_sync() runs in a thread without the context of the request.",
            "background in the unit": OUTLIVES,
            "cors": NO_CORS,
        },
    ),
    Framework(
        "django",
        excused={
            "sync stream": "Under ASGI, Django consumes a sync iterator whole before the response starts.",
            "background": NO_BACKGROUND,
            "websocket": NO_WEBSOCKET,
            "startup": "Django does not speak lifespan.",
            "cors": NO_CORS,
        },
    ),
    Framework(
        "sanic",
        excused={
            "sync wait": ON_THE_LOOP,
            "sync stream": NO_SYNC_STREAM,
            "sync background": "Sanic's background tasks are coroutines.",
            "background in the unit": OUTLIVES,
            "background after COMMIT": STARTED_BEFORE,
            "message": READS_AHEAD,
            "cors": NO_CORS,
        },
    ),
    Framework(
        "connexion",
        own_place=True,
        excused={
            "hook": NO_HOOK,
            "websocket": NO_WEBSOCKET,
        },
    ),
    Framework(
        "connexion flask",
        own_place=True,
        excused={
            "async": "Flask runs a coroutine on an event loop that has ended before the COMMIT: use db.session.",
            "sync stream": "The WSGI bridge runs a body while the response waits for COMMIT: open a session_scope().",
            "hook": NO_HOOK,
            "background": NO_BACKGROUND,
            "websocket": NO_WEBSOCKET,
            "startup": "Flask has no start-up hook.",
        },
    ),
)

OUT_OF_CONTEXT = {
    "falcon": ("GET", "/sync/helper", "NoUnitOfWorkError"),
    "connexion flask": ("POST", "/async/write", "WrongEventLoopError"),
}
OF_SERVERS = {
    "daphne": {
        "startup": "daphne speaks no lifespan.",
        "disposal": "daphne speaks no lifespan, so that nothing is disposed before its process ends.",
    },
}
OF_PAIRS = {
    ("sanic", "daphne"): {"server": "Sanic takes its event loop from the lifespan, which daphne does not speak."},
    ("quart", "daphne"): {"websocket": "Quart wants a scheme in the scope, which daphne leaves out for websockets."},
    ("litestar", "granian"): {
        "cause": "Litestar raises its own exception from ours, and granian logs one without its cause."
    },
}


@dataclass(frozen=True)
class Case:
    """One application under one server, wrapped in one place."""

    server: Server
    framework: Framework
    outermost: bool

    def __str__(self) -> str:
        return f"{self.framework.name} under {self.server}{', outermost' if self.outermost else ''}"

    @property
    def table(self) -> str:
        """The table of its tests."""
        return f"Frameworks on {self.server}{', outermost' if self.outermost else ''}"

    @property
    def excused(self) -> Mapping[str, str]:
        """What its framework is excused from, anywhere or under its server."""
        return {
            **self.framework.excused,
            **OF_SERVERS.get(self.server.name, {}),
            **OF_PAIRS.get((self.framework.name, self.server.name), {}),
        }

    def needs(self, *features: str) -> None:
        """Excuse the framework if it lacks one of these."""
        for feature in features:
            if feature in self.excused:
                not_applicable(self.excused[feature])


ASYNCIO_SERVERS = [server for server in SERVERS if not server.trio]
CASES = [
    *(Case(server, framework, False) for server in ASYNCIO_SERVERS for framework in FRAMEWORKS),
    *(Case(SERVERS[0], framework, True) for framework in FRAMEWORKS if framework.own_place),
]
_numbers = itertools.count(1)


def row(text: str) -> pytest.MarkDecorator:
    """Name the row of a test."""
    return pytest.mark.cell("{case.table}", text, "{case.framework.name}")


@pytest.fixture(scope="module", params=[pytest.param(each, id=f"<{each}>") for each in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    """Return each case in turn."""
    case: Case = request.param
    return case


def serve(case: Case, folder: Path) -> Site:
    """Return the case's site, to be entered."""
    wrap = "outermost" if case.outermost else "own"
    return Site(case.server, f"matrix.applications.{case.framework.module}:app", folder, MATRIX_WRAP=wrap)


@pytest.fixture(scope="module")
def running(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start the case's application, once for all its tests."""
    case.needs("server")
    with serve(case, tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """Return the running site, and print what its server says during the test."""
    before = len(running.logged())
    yield running
    print(running.logged()[before:])


@pytest.fixture
def name() -> str:
    """Return a prefix for the names of a test's items, which no other test uses."""
    return f"n{next(_numbers)}-"


@KINDS
@row("write ({kind})")
def test_a_write_is_committed_before_the_answer(case: Case, site: Site, name: str, kind: str) -> None:
    """When the client sees the status, another connection sees the row."""
    case.needs(kind)

    assert site.post(f"/{kind}/write", name).status_code == 201
    assert site.names(name) == [""]


@KINDS
@row("redirect ({kind})")
def test_a_redirect_keeps_the_write(case: Case, site: Site, name: str, kind: str) -> None:
    """A redirect after POST commits."""
    case.needs(kind)

    assert site.post(f"/{kind}/write", name, status=303).status_code == 303
    assert site.names(name) == [""]


@KINDS
@row("returned error ({kind})")
def test_a_returned_error_keeps_nothing(case: Case, site: Site, name: str, kind: str) -> None:
    """The work of a handler that returns a 4xx is rolled back."""
    case.needs(kind)

    assert site.post(f"/{kind}/write", name, status=422).status_code == 422
    assert site.names(name) == []


@KINDS
@row("framework's error ({kind})")
def test_an_error_of_the_framework_keeps_nothing(case: Case, site: Site, name: str, kind: str) -> None:
    """The work of a handler that raises the framework's exception for a 4xx is rolled back."""
    case.needs(kind)

    assert 400 <= site.post(f"/{kind}/write", name, fail="abort").status_code < 500
    assert site.names(name) == []


@KINDS
@row("raised error ({kind})")
def test_a_raised_error_keeps_nothing(case: Case, site: Site, name: str, kind: str) -> None:
    """An unhandled exception is a 500, nothing is kept, and no connection stays out."""
    case.needs(kind)

    assert site.post(f"/{kind}/write", name, fail="raise").status_code == 500
    assert site.names(name) == []
    assert site.out() == 0


@KINDS
@row("error handler ({kind})")
def test_an_error_handler_sees_the_unit(case: Case, site: Site, name: str, kind: str) -> None:
    """The framework's handler of an exception runs in the request's unit of work."""
    case.needs(kind)

    answer = site.post(f"/{kind}/write", name, fail="handled")

    assert (answer.status_code, answer.text) == (422, f"POST /{kind}/write")
    assert site.names(name) == []


@KINDS
@row("COMMIT fails ({kind})")
def test_a_failed_commit_is_an_error(case: Case, site: Site, name: str, kind: str) -> None:
    """The client gets our 500, not the answer of a framework's handler, and the log gives the reason."""
    case.needs(kind)

    answer = site.post(f"/{kind}/write", name, fail="unmapped")

    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert site.names(name) == []
    assert site.out() == 0
    case.needs("cause")
    assert wait_until(lambda: "the curse of the matrix" in site.logged())


@KINDS
@row("COMMIT fails, mapped ({kind})")
def test_a_failed_commit_is_answered_as_mapped(case: Case, site: Site, name: str, kind: str) -> None:
    """An exception in error_responses gets its answer."""
    case.needs(kind)

    answer = site.post(f"/{kind}/write", name, fail="mapped")

    assert (answer.status_code, answer.text) == (409, "Conflict")
    assert site.names(name) == []


@KINDS
@row("full pool in a handler, mapped ({kind})")
def test_an_exhausted_pool_in_a_handler_is_answered_as_mapped(case: Case, site: Site, name: str, kind: str) -> None:
    """The framework makes a 500 of it, or raises it; the client gets the answer of the mapping."""
    case.needs(kind)

    answer = site.post(f"/{kind}/write", name, fail="full")

    assert (answer.status_code, answer.text) == (503, "Service Unavailable")
    assert site.names(name) == []


@row("CORS on our answer")
def test_our_own_answer_has_cors_headers(case: Case, site: Site, name: str) -> None:
    """Our answer passes through the CORS middleware outside ours."""
    query = {"name": name, "fail": "mapped"}
    kind = "sync" if "async" in case.excused else "async"
    answer = site.client.post(f"/{kind}/write", params=query, headers={"origin": "http://elsewhere"})

    assert answer.status_code == 409
    case.needs("cors")
    if case.outermost:
        assert "access-control-allow-origin" not in answer.headers
        not_applicable(OUTSIDE_CORS)
    assert answer.headers["access-control-allow-origin"] == "*"


@KINDS
@row("read ({kind})")
def test_a_read_sees_what_is_committed(case: Case, site: Site, name: str, kind: str) -> None:
    """The next request reads what one request wrote."""
    case.needs(kind)

    site.post(f"/{kind}/write", name)

    assert site.get(f"/{kind}/read", name).text == "1"


@KINDS
@row("stream ({kind})")
def test_a_stream_begins_after_the_commit_and_reads_on(case: Case, site: Site, name: str, kind: str) -> None:
    """At the first chunk the write is committed and no connection is held, and the body may read again."""
    case.needs(kind, f"{kind} stream")

    with site.client.stream("POST", f"/{kind}/stream", params={"name": name}) as answer:
        chunks = answer.iter_lines()
        first = next(chunks)
        during = (site.names(name), site.out(), site.connections("idle in transaction"))
        site.open_gate(name)
        rest = list(chunks)

    assert (first, rest) == ("first", ["1"])
    assert during == ([""], 0, 0)
    assert wait_until(lambda: site.out() == 0)


@KINDS
@row("stream raises ({kind})")
def test_a_stream_that_raises_keeps_only_what_was_committed(case: Case, site: Site, name: str, kind: str) -> None:
    """The writes of a body that raises are rolled back, and later requests succeed."""
    case.needs(kind, f"{kind} stream")
    site.open_gate(name)

    with site.client.stream("POST", f"/{kind}/stream", params={"name": name, "fail": "late"}) as answer:
        first = next(answer.iter_lines())

    assert first == "first"
    assert wait_until(lambda: site.out() == 0)
    assert site.names(name) == [""]
    assert site.post(f"/{kind}/write", f"{name}next", fail="raise").status_code == 500


@KINDS
@row("stream, COMMIT fails ({kind})")
def test_a_stream_whose_commit_fails_is_an_error(case: Case, site: Site, name: str, kind: str) -> None:
    """Nothing of the body is sent, and it does not continue."""
    case.needs(kind, f"{kind} stream")
    site.open_gate(name)

    answer = site.post(f"/{kind}/stream", name, fail="mapped")

    assert (answer.status_code, answer.text) == (409, "Conflict")
    assert site.names(name) == []
    assert site.note(name) is None


@KINDS
@row("background, own scope ({kind})")
def test_a_background_task_writes_in_its_own_scope(case: Case, site: Site, name: str, kind: str) -> None:
    """A background task with a session_scope() writes, in any framework."""
    case.needs(kind, "background", f"{kind} background")

    assert site.post(f"/{kind}/background", name, scope=1).status_code == 201
    assert wait_until(lambda: site.note(name) is not None)
    assert site.note(name) == "written"
    assert site.names(name) == ["", "background"]


@KINDS
@row("background in the unit ({kind})")
def test_a_background_task_writes_in_the_unit(case: Case, site: Site, name: str, kind: str) -> None:
    """A task that the framework runs as part of the request writes through the request's session.

    If the task outlives the request, its session is closed for good, and it gets an error that says so.
    """
    case.needs(kind, "background", f"{kind} background")

    assert site.post(f"/{kind}/background", name).status_code == 201
    assert site.names(name) == [""]
    if "background in the unit" in case.excused:
        assert wait_until(lambda: site.out() == 0)
    site.open_gate(name)
    assert wait_until(lambda: site.note(name) is not None)
    if "background in the unit" in case.excused:
        assert (site.note(name), site.names(name)) == ("UnitOfWorkEndedError", [""])
        case.needs("background in the unit")
    assert site.note(name) == "written"
    assert wait_until(lambda: site.names(name) == ["", "background"])
    assert wait_until(lambda: site.out() == 0)


@KINDS
@row("background, COMMIT fails ({kind})")
def test_a_failed_commit_runs_no_background_task(case: Case, site: Site, name: str, kind: str) -> None:
    """Work for after the response does not run after another response."""
    case.needs(kind, "background", f"{kind} background", "background after COMMIT")
    site.open_gate(name)

    assert site.post(f"/{kind}/background", name, fail="mapped", scope=1).status_code == 409
    assert site.note(name) is None
    assert site.names(name) == []


@KINDS
@row("hook or dependency ({kind})")
def test_a_hook_writes_in_the_unit(case: Case, site: Site, name: str, kind: str) -> None:
    """The writes of a dependency or a hook are in one transaction with the handler's."""
    case.needs(kind, "hook")

    site.post(f"/{kind}/write", name, hook=1)
    site.post(f"/{kind}/write", f"{name}failed", hook=1, status=422)

    assert site.names(name) == ["", "-hook"]


@row("out of context")
def test_code_outside_the_context_gets_an_error(case: Case, tmp_path: Path) -> None:
    """If a framework runs code without the request's context, or on another event loop, the error says so."""
    case.needs("server")
    if case.framework.name not in OUT_OF_CONTEXT:
        not_applicable("The framework runs nothing without the request's context, or on another event loop.")
    method, path, error = OUT_OF_CONTEXT[case.framework.name]

    with serve(case, tmp_path) as site:
        answer = site.client.request(method, path, params={"name": "lost"})

        assert wait_until(lambda: error in answer.text or error in site.logged())
        assert site.names("lost") == []
        assert wait_until(lambda: site.connections("idle in transaction") == 0, 2)


@KINDS
@row("mounted ({kind})")
def test_a_nested_application_is_in_the_unit(case: Case, site: Site, name: str, kind: str) -> None:
    """A mounted application, a router or a blueprint writes in the unit of the request."""
    case.needs(kind)

    assert site.post(f"/mounted/{kind}/write", name).status_code == 201
    assert site.post(f"/mounted/{kind}/write", f"{name}failed", status=422).status_code == 422
    assert site.names(name) == [""]


def converse(site: Site) -> ClientConnection:
    """Open the websocket."""
    return connect(f"ws://127.0.0.1:{site.port}/ws", open_timeout=PATIENCE, close_timeout=PATIENCE, proxy=None)


def say(socket: ClientConnection, text: str) -> str:
    """Send a message, and return the answer to it."""
    socket.send(text)
    return str(socket.recv(PATIENCE))


@row("websocket, idle")
def test_an_idle_websocket_holds_nothing(case: Case, site: Site, name: str) -> None:
    """A message is committed when the application asks for the next, and no connection is held until then.

    If the framework reads ahead, the whole conversation is the unit, and is committed at its end.
    """
    case.needs("websocket")

    with converse(site) as socket:
        assert say(socket, name) == f"written {name}"
        if "message" not in case.excused:
            assert wait_until(lambda: site.names(name) == [""])
            assert wait_until(lambda: site.out() == 0)
    assert wait_until(lambda: site.names(name) == [""])
    assert wait_until(lambda: site.out() == 0)
    case.needs("message")


@row("websocket, raises")
def test_a_websocket_that_raises_rolls_its_message_back(case: Case, site: Site, name: str) -> None:
    """The message before is kept, and the failed one is not."""
    case.needs("websocket", "message")

    with converse(site) as socket:
        say(socket, name)
        with pytest.raises(ConnectionClosed):
            say(socket, f"{name}-raise")
    assert wait_until(lambda: site.out() == 0)
    assert site.names(name) == [""]


@KINDS
@row("disconnect ({kind})")
def test_a_client_that_leaves_takes_no_connection_with_it(case: Case, site: Site, name: str, kind: str) -> None:
    """Whether the framework cancels the handler or not, no connection stays out, and no work is half done."""
    case.needs(kind, f"{kind} wait")

    with socket.create_connection(("127.0.0.1", site.port)) as client:
        request = f"POST /{kind}/write?name={name}&wait=1&hook=1 HTTP/1.1\r\nHost: site\r\nContent-Length: 0\r\n\r\n"
        client.sendall(request.encode())
        assert wait_until(lambda: site.note(f"{name}-waiting") is not None)
    site.open_gate(name)

    assert wait_until(lambda: site.out() == 0)
    assert site.connections("idle in transaction") == 0
    assert site.names(name) in ([], [""], ["", "-hook"])
    assert site.post(f"/{kind}/write", f"{name}next").status_code == 201


@row("startup sees no unit")
def test_start_up_code_is_in_no_unit(case: Case, site: Site) -> None:
    """Tasks that startup code starts inherit no unit of work."""
    case.needs("startup")

    assert site.note("startup") == "NoUnitOfWorkError"


@row("engines disposed")
def test_engines_are_disposed_at_shutdown(case: Case, site: Site, name: str) -> None:
    """PostgreSQL counts no connection of the site that ended without a goodbye; this test ends the site."""
    for kind in {"async", "sync"} - case.excused.keys():
        site.post(f"/{kind}/write", f"{name}{kind}")
    assert site.connections("idle") >= 1
    abandoned = site.abandoned()

    site.stop()

    assert wait_until(lambda: site.connections() == 0)
    case.needs("disposal")
    assert site.abandoned() == abandoned
