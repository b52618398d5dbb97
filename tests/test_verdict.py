"""The verdict: commit or roll back, from what is known when the response starts."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest

from asgi_sqla import ConfigurationError
from asgi_sqla.asgi.verdict import below_400, verdict_of

SCOPE = {"type": "http", "method": "POST", "path": "/"}


def start(status: int) -> Any:
    """Return the message that starts a response."""
    return {"type": "http.response.start", "status": status, "headers": []}


@pytest.mark.parametrize(
    ("status", "commits"),
    [(100, True), (200, True), (201, True), (204, True), (303, True), (399, True)]
    + [(400, False), (404, False), (422, False), (500, False), (599, False)],
)
def test_by_default_every_status_below_400_commits(status: int, commits: bool) -> None:
    """Redirects commit too, because they follow a successful write."""
    scope: Any = SCOPE
    assert below_400(scope, start(status)) is commits


@pytest.mark.parametrize(
    "statuses",
    [range(200, 300), [200, 201], (200, 201), {200, 201}, frozenset((201, 200)), {200: "ok", 201: "made"}]
    + [[HTTPStatus.OK, HTTPStatus.CREATED]],
)
def test_a_container_commits_what_it_holds(statuses: Any) -> None:
    """Any container works."""
    verdict = verdict_of(statuses)
    assert [verdict(SCOPE, start(status)) for status in (200, 201, 303, 400)] == [True, True, False, False]


def test_an_empty_container_never_commits() -> None:
    """An application that only reads can use it."""
    assert verdict_of(())(SCOPE, start(200)) is False


class Odd:
    """A container that cannot be iterated."""

    def __contains__(self, status: object) -> bool:
        return isinstance(status, int) and status % 2 == 1


def test_a_container_need_not_be_iterable() -> None:
    """The statuses are tested with ``in``."""
    verdict = verdict_of(Odd())
    assert [verdict(SCOPE, start(200)), verdict(SCOPE, start(201))] == [False, True]


def test_a_callable_sees_the_scope_and_the_start() -> None:
    """Its result is the verdict."""
    seen: list[Any] = []

    def verdict(scope: Any, message: Any) -> bool:
        seen.append((scope, message))
        return True

    assert verdict_of(verdict)(SCOPE, start(500)) is True
    assert seen == [(SCOPE, start(500))]


@pytest.mark.parametrize(("answer", "commits"), [(1, True), ("yes", True), (0, False), (None, False)])
def test_the_truth_of_a_result_is_the_verdict(answer: Any, commits: bool) -> None:
    """It need not be a bool."""
    verdict: Any = lambda _scope, _message: answer  # noqa: E731  # typed, a plain function could not return it
    assert verdict_of(verdict)(SCOPE, start(200)) is commits


class Later:
    """Something to await that is no coroutine, such as a future."""

    def __await__(self) -> Any:
        """Never run."""
        raise AssertionError


def test_an_awaitable_is_not_a_verdict() -> None:
    """Nothing awaits it, so it is refused."""
    verdict: Any = lambda _scope, _message: Later()  # noqa: E731  # as above
    with pytest.raises(ConfigurationError, match="awaited"):
        verdict_of(verdict)(SCOPE, start(200))


def test_a_callable_without_a_signature_is_accepted() -> None:
    """Some functions in C have no signature, and only a call shows whether the arguments fit."""
    verdict: Any = max
    assert verdict_of(verdict)(0, 1) is True
