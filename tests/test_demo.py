"""The tour: what it prints, and that it notices broken promises."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import httpx
import pytest

from asgi_sqla.demo.report import Report

TOUR = [sys.executable, "-W", "error", "-m", "asgi_sqla.demo"]

OTHER_APP = """
import asyncio
import sys
from asgi_sqla import ERROR_RESPONSES, SQLAlchemyMiddleware
from asgi_sqla.demo.application import api
from asgi_sqla.demo.command import run
{app}
sys.exit(run(0, serve=False, app=app))
"""

COMMITS_422 = "app = SQLAlchemyMiddleware(api, commit_on=range(200, 500), error_responses=ERROR_RESPONSES)"

COMMITS_LATE = """
async def answers_first(scope, receive, send):
    if scope["type"] != "http":
        return await api(scope, receive, send)
    starts = []

    async def answer(message):
        if message["type"] == "http.response.start":
            starts.append(message)
        await scope["to the client"](message)

    await api(scope, receive, answer)
    await asyncio.sleep(0.1)
    await send(starts[0])  # and only now COMMIT, as after a hand-written session per request


late = SQLAlchemyMiddleware(answers_first, error_responses=ERROR_RESPONSES)


async def app(scope, receive, send):
    async def drop(message):
        pass

    if scope["type"] != "http":
        await late(scope, receive, send)
    else:
        await late({**scope, "to the client": send}, receive, drop)
"""

REFUSES_SOCKETS = """
shop = SQLAlchemyMiddleware(api, error_responses=ERROR_RESPONSES)


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})
    else:
        await shop(scope, receive, send)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a plain UTF-8 console with an empty folder for temporary files."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "PYTHONIOENCODING")}
    return {**inherited, "PYTHONUTF8": "1", "TMPDIR": str(tmp_path_factory.mktemp("temporary"))}


@pytest.fixture(scope="module")
def tour(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Return the finished tour, with every warning an error."""
    return subprocess.run(TOUR, env=environment, capture_output=True, text=True, timeout=50)


def test_every_promise_is_kept(tour: subprocess.CompletedProcess[str]) -> None:
    """The tour succeeds and says so, without a warning."""
    *_, last = tour.stdout.splitlines()

    assert (tour.returncode, tour.stderr) == (0, "")
    assert last.startswith("✓ 15 of 15 promises kept, in ")
    assert "✗" not in tour.stdout


def test_it_is_readable_at_a_glance(tour: subprocess.CompletedProcess[str]) -> None:
    """No line is wider than 88 columns, and output to a file has no colour."""
    assert max(len(line) for line in tour.stdout.splitlines()) <= 88
    assert "\033" not in tour.stdout


def test_nothing_is_left_behind(tour: subprocess.CompletedProcess[str], environment: dict[str, str]) -> None:
    """The database file is removed when the tour ends."""
    assert list(Path(environment["TMPDIR"]).iterdir()) == []


def test_it_may_be_cut_short(environment: dict[str, str]) -> None:
    """A reader that stops, such as ``head``, neither stops the tour nor gets a traceback."""
    pipe = subprocess.PIPE
    with subprocess.Popen(TOUR, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        complaints = process.stderr.read()

    assert (process.returncode, complaints) == (0, "")


def heed_interrupts() -> None:
    """Undo what a shell does to its background jobs, as these tests may run in one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_it_may_be_interrupted(environment: dict[str, str]) -> None:
    """Ctrl-C stops the server, removes the file and leaves no traceback."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        TOUR, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_interrupts
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=20)

    assert (process.returncode, complaints) == (130, "")
    assert list(Path(environment["TMPDIR"]).iterdir()) == []


def other_tour(app: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Take the tour of another application, which ``app`` defines."""
    command = [sys.executable, "-W", "error", "-c", OTHER_APP.format(app=app)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)


def broken(tour: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the promises that the tour reports as broken."""
    mark = "   ✗ broken in "
    return [line.removeprefix(mark) for line in tour.stdout.splitlines() if line.startswith(mark)]


def test_it_notices_a_row_that_an_error_left(environment: dict[str, str]) -> None:
    """A shop that commits a 422 breaks one promise, which is named, and the exit code is 1."""
    tour = other_tour(COMMITS_422, environment)

    assert tour.returncode == 1
    assert "✗ 14 of 15 promises kept" in tour.stdout
    assert broken(tour) == ["step 3: a returned error leaves no row"]


def test_it_notices_a_commit_after_the_response(environment: dict[str, str]) -> None:
    """A shop that commits after its answer breaks every promise that depends on the order."""
    tour = other_tour(COMMITS_LATE, environment)

    assert tour.returncode == 1
    assert {
        "step 1: the row is committed before the client is told 201",
        "step 2: the row is committed before the client is told 201",
        "step 4: the client is told 409, never 201",
        "step 5: a slow reader holds no connection",
        "step 5: others are served meanwhile, by async and sync handlers",
    } <= set(broken(tour))


def test_a_step_that_fails_is_a_broken_promise(environment: dict[str, str]) -> None:
    """The tour goes on after a step that raised, and shows its traceback."""
    tour = other_tour(REFUSES_SOCKETS, environment)

    assert tour.returncode == 1
    assert broken(tour) == ["step 6: the step completes without InvalidStatus"]
    assert "Traceback" in tour.stderr
    assert "9. A job that raises" in tour.stdout


def test_missing_extras_are_named() -> None:
    """The tour says in one line what to install."""
    without = "import runpy, sys; sys.modules.update(fastapi=None, uvicorn=None); sys.argv = ['tour']; "
    run = "runpy.run_module('asgi_sqla.demo', run_name='__main__')"
    tour = subprocess.run([sys.executable, "-c", without + run], capture_output=True, text=True, timeout=50)

    assert tour.returncode == 2
    assert tour.stdout == ""
    assert tour.stderr == (
        "the tour needs fastapi, uvicorn; write: pip install 'asgi-sqla[demo]' (in a checkout: '.[demo]')\n"
    )


def test_a_taken_port_is_named() -> None:
    """A port in use is reported in one line."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        tour = subprocess.run([*TOUR, "--port", str(port)], capture_output=True, text=True, timeout=50)

    assert (tour.returncode, tour.stdout) == (2, "")
    assert tour.stderr.startswith(f"port {port} is not available: ")
    assert tour.stderr.count("\n") == 1


def test_what_is_no_port_is_refused() -> None:
    """A number out of range is a usage error."""
    tour = subprocess.run([*TOUR, "--port", "65536"], capture_output=True, text=True, timeout=50)

    assert tour.returncode == 2
    assert "65536 is not a port; write a number from 0 to 65535" in tour.stderr


@pytest.fixture
def served(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Return the tour with ``--serve``, its output still unread."""
    command = [*TOUR, "--serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        yield process
        process.kill()


def test_the_server_stays_until_interrupted(served: subprocess.Popen[str], environment: dict[str, str]) -> None:
    """``--serve`` prints the address of the shop, and Ctrl-C ends it cleanly, even with clients."""
    assert served.stdout is not None
    url = next(line.split("=")[1].strip() for line in served.stdout if line.startswith("  shop=http"))
    with httpx.Client(base_url=url, trust_env=False) as client:
        count = client.get("/orders/count").json()
        with client.stream("GET", "/catalogue"):
            out = client.get("/connections").json()
            served.send_signal(signal.SIGINT)
            stdout, stderr = served.communicate(timeout=20)

    assert (count, out) == ({"orders": 6}, {"sync": 0, "async": 0})
    assert (served.returncode, stderr) == (0, "")
    assert stdout.endswith("The server stops, and its database file is removed.\n")
    assert list(Path(environment["TMPDIR"]).iterdir()) == []


class Terminal(StringIO):
    """A terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "coloured"), [(None, True), ("", True), ("1", False)])
def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch, no_color: str | None, coloured: bool) -> None:
    """A terminal gets colour, unless NO_COLOR is set and not empty."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    terminal = Terminal()

    Report(terminal).promise("no promise", kept=False)

    assert ("\033[31m" in terminal.getvalue()) == coloured


@pytest.mark.parametrize(("encoding", "marks"), [("utf-8", ["✓", "✗"]), ("ascii", ["ok", "NO"])])
def test_marks_are_what_the_console_can_show(tmp_path: Path, encoding: str, marks: list[str]) -> None:
    """A console without check marks gets words."""
    path = tmp_path / "out"
    with path.open("w", encoding=encoding) as out:
        report = Report(out)
        report.promise("kept", kept=True)
        report.promise("broken", kept=False)

    assert path.read_text(encoding).split() == [marks[0], "kept", marks[1], "broken"]
