"""Every server, in its own process, over a real socket: a raw ASGI application, and FastAPI."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest

from matrix.report import not_applicable
from matrix.sites import PATIENCE, SERVERS, Server, Site, wait_until

KINDS = pytest.mark.parametrize("kind", ["async", "sync"])
NO_LIFESPAN = "daphne speaks no lifespan, so that nothing is disposed before its process ends."


@dataclass(frozen=True)
class Case:
    """One application under one server."""

    server: Server
    app: str

    def __str__(self) -> str:
        return f"{self.app} on {self.server}"

    def needs(self, kind: str) -> None:
        """Excuse what only asyncio has."""
        if kind == "async" and self.server.trio:
            not_applicable("An AsyncSession needs an asyncio event loop, and says so on any other.")


def row(text: str) -> pytest.MarkDecorator:
    """Name the row of a test."""
    return pytest.mark.cell("Servers, {case.app}", text, "{case.server}")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(each, id=f"<{each}>") for app in ("raw", "fastapi") for each in (Case(s, app) for s in SERVERS)
    ],
)
def case(request: pytest.FixtureRequest) -> Case:
    """Return each case in turn."""
    case: Case = request.param
    return case


def start(case: Case, factory: pytest.TempPathFactory) -> Site:
    """Return the case's site, to be entered."""
    return Site(case.server, f"matrix.applications.{case.app}:app", factory.mktemp("site"))


@pytest.fixture(scope="module")
def running(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start the case's application, once for most tests."""
    with start(case, tmp_path_factory) as site:
        yield site


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """Return the running site, and print what its server says during the test."""
    before = len(running.logged())
    yield running
    print(running.logged()[before:])


@pytest.fixture
def doomed(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a running site for a test that shuts it down."""
    with start(case, tmp_path_factory) as site:
        yield site
    print(site.logged())


@KINDS
@row("commit before the answer ({kind})")
def test_commit_comes_before_the_answer(case: Case, site: Site, kind: str) -> None:
    """When the client sees the status, another connection sees the row."""
    if case.server.trio and kind == "async":
        assert site.post("/async/write", "nowhere").status_code == 500
        assert wait_until(lambda: "WrongEventLoopError" in site.logged())
    case.needs(kind)

    assert site.post(f"/{kind}/write", f"before-{kind}").status_code == 201
    assert site.names(f"before-{kind}") == [""]


@KINDS
@row("disconnect ({kind})")
def test_a_client_that_leaves_does_not_stop_the_work(case: Case, site: Site, kind: str) -> None:
    """Servers do not cancel the handler of a disconnected client: it commits, and no connection stays out."""
    case.needs(kind)
    name = f"leaves-{kind}"

    with socket.create_connection(("127.0.0.1", site.port)) as client:
        request = f"POST /{kind}/write?name={name}&wait=1 HTTP/1.1\r\nHost: site\r\nContent-Length: 0\r\n\r\n"
        client.sendall(request.encode())
        assert wait_until(lambda: site.note(f"{name}-waiting") is not None)
    site.open_gate(name)

    assert wait_until(lambda: site.names(name) == [""])
    assert wait_until(lambda: site.out() == 0)
    assert site.connections("idle in transaction") == 0


@KINDS
@row("keep-alive ({kind})")
def test_requests_of_one_connection_share_nothing(case: Case, site: Site, kind: str) -> None:
    """Each request of a kept connection begins without a unit and ends its own."""
    case.needs(kind)
    name = f"kept-{kind}-"
    statuses = [201, 422, 201, 422, 303]

    with httpx.Client(base_url=site.url, timeout=PATIENCE, verify=False) as client:
        answers = [
            client.post(f"/{kind}/write", params={"name": f"{name}{number}", "status": status})
            for number, status in enumerate(statuses)
        ]

    assert [answer.status_code for answer in answers] == statuses
    assert site.names(name) == ["0", "2", "4"]
    if case.app == "raw":
        assert {answer.headers["x-before"] for answer in answers} == {"NoUnitOfWorkError"}


@KINDS
@row("COMMIT fails ({kind})")
def test_a_failed_commit_harms_no_later_request(case: Case, site: Site, kind: str) -> None:
    """Each failure is answered, and so is every later request."""
    case.needs(kind)
    name = f"fails-{kind}-"
    fates = {"unmapped": 500, "mapped": 409, "raise": 500, "": 201}

    statuses = [
        site.post(f"/{kind}/write", f"{name}{turn}{fate}", fail=fate).status_code for turn in "ab" for fate in fates
    ]

    assert statuses == [*fates.values(), *fates.values()]
    assert site.names(name) == ["a", "b"]
    assert site.out() == 0


@KINDS
@row("exception after the start ({kind})")
def test_an_exception_after_the_start_harms_no_later_request(case: Case, site: Site, kind: str) -> None:
    """A body that raises ends only that connection, and its writes are rolled back."""
    case.needs(kind)
    name = f"late-{kind}-"
    site.open_gate(name)

    with httpx.Client(base_url=site.url, timeout=2, verify=False) as client, pytest.raises(httpx.HTTPError):
        client.post(f"/{kind}/stream", params={"name": name, "fail": "late"})

    assert site.post(f"/{kind}/write", f"{name}raise", fail="raise").status_code == 500
    assert site.post(f"/{kind}/write", f"{name}unmapped", fail="unmapped").status_code == 500
    assert site.post(f"/{kind}/write", f"{name}next").status_code == 201
    assert site.names(name) == ["", "next"]
    assert site.out() == 0


@row("graceful shutdown")
def test_a_shutdown_lets_requests_end(case: Case, doomed: Site) -> None:
    """At SIGTERM running requests are answered, their writes committed, and their connections closed."""
    kinds = ["sync"] if case.server.trio else ["async", "sync"]
    if case.server.name == "daphne":
        kinds = ["async"]  # of several it waits for the first to be cancelled, and hangs on the thread of another

    with ThreadPoolExecutor(2) as executor:
        answers = [executor.submit(doomed.post, f"/{kind}/write", kind, wait=1) for kind in kinds]
        assert wait_until(lambda: all(doomed.note(f"{kind}-waiting") is not None for kind in kinds))
        doomed.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(doomed.port), 0.5)
        for kind in kinds:
            doomed.open_gate(kind)
        failures = [answer.exception(PATIENCE) for answer in answers]

    assert wait_until(lambda: doomed.connections() == 0)
    if case.server.name == "daphne":
        assert all(isinstance(failure, httpx.HTTPError) for failure in failures)
        assert doomed.names("") == []
        not_applicable(
            "daphne cancels what is in flight at SIGTERM: the client gets no answer, the write is rolled back."
        )
    assert failures == [None] * len(kinds)
    assert [answer.result().status_code for answer in answers] == [201] * len(kinds)
    assert doomed.names("") == kinds


def refuses(port: int) -> bool:
    """Return whether nothing listens on the port any more."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return True
    return False


@row("engines disposed")
def test_engines_are_disposed_at_shutdown(case: Case, doomed: Site) -> None:
    """While the process still runs, PostgreSQL lists no connection of it any more.

    FastAPI's process has ended by then: PostgreSQL counts no connection of it that ended without a goodbye.
    """
    for kind in ["sync"] if case.server.trio else ["async", "sync"]:
        assert doomed.post(f"/{kind}/write", kind).status_code == 201
    assert doomed.connections("idle") == (1 if case.server.trio else 2)
    doomed.open_gate("hold")

    doomed.process.send_signal(signal.SIGTERM)

    if case.server.name == "daphne":
        doomed.process.wait(PATIENCE)
        assert doomed.abandoned() > 0
        not_applicable(NO_LIFESPAN)
    if case.app == "raw":
        assert wait_until(lambda: (doomed.folder / "shutting-down").exists())
        assert wait_until(lambda: doomed.connections() == 0, 1)
        assert doomed.process.poll() is None
        doomed.open_gate("shut-down")
    doomed.process.wait(PATIENCE)
    assert wait_until(lambda: doomed.connections() == 0)
    assert doomed.abandoned() == 0
