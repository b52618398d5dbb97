"""The list of the README's claims, ``claims.rst``: its words still stand there, and its tests exist."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from docutils.core import publish_doctree
from docutils.nodes import system_message

from asgi_sqla import ERROR_RESPONSES, ErrorKind, SQLAlchemyMiddleware
from asgi_sqla.asgi import retry
from asgi_sqla.cli import BEHIND, FAILED, LOCKED, REFUSED, USAGE
from asgi_sqla.engine import loops, replicas
from asgi_sqla.engine.drivers import DRIVERS
from asgi_sqla.session.transient import longest_pause
from asgi_sqla.unit import cancellation

TOP = Path(__file__).parent.parent
PAGE = (TOP / "tests" / "claims.rst").read_text()
BEFORE_THE_SECTIONS = "asgi_sqla"
"""The title of the README, and of what it says before its first section."""
WITHOUT_CLAIMS = {"Contributing"}


class Claim(NamedTuple):
    """Words of a section of the README, and the tests that hold them."""

    section: str
    words: str
    tests: tuple[str, ...]


def folded(text: str) -> str:
    """Return a text with single blanks, so that the ends of lines do not count."""
    return " ".join(text.split())


def sections(page: str) -> dict[str, str]:
    """Return the text below each heading, folded; below that of the page, what comes before the first section."""
    title, *parts = re.split(r"^(.+)\n(?:-{3,}|={3,})\n", page, flags=re.MULTILINE)
    assert title.strip() == ""
    return dict(zip(parts[::2], map(folded, parts[1::2]), strict=True))


def claims() -> list[Claim]:
    """Return every item of the list: its first lines are the words, and the items below it are the tests."""
    found = []
    _, *parts = re.split(r"^(.+)\n-{3,}\n", PAGE, flags=re.MULTILINE)
    for section, text in zip(parts[::2], parts[1::2], strict=True):
        for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]:
            words, *tests = re.split(r"^  - ", item, flags=re.MULTILINE)
            found.append(Claim(section, folded(words), tuple(test.strip().strip("`") for test in tests)))
    return found


CLAIMS = claims()
README = sections((TOP / "README.rst").read_text())


@cache
def names_in(file: str) -> frozenset[str]:
    """Return the names of the tests in a file, without importing it; those of the matrix need its packages."""
    path = TOP / file
    body = ast.parse(path.read_text()).body if path.is_file() else []
    body += [each for node in body if isinstance(node, ast.ClassDef) for each in node.body]
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_words_stand_in_the_readme() -> None:
    """Where they do not, the claim was changed or moved: quote the new one, and see that its tests hold that."""
    gone = [f"{one.section}: {one.words}" for one in CLAIMS if one.words not in README.get(one.section, "")]
    assert gone == [], (
        "README.rst does not say this any more: change tests/claims.rst, and read the tests of each claim"
    )


def test_the_tests_exist() -> None:
    """Where one does not, it was renamed or removed: name the test that holds the claim now."""
    named = {(test, *test.partition("::")[::2]) for one in CLAIMS for test in one.tests}
    gone = sorted(test for test, file, name in named if name not in names_in(file))
    assert gone == [], "no such test: write in tests/claims.rst which one holds the claim now, or write one"


def test_every_claim_has_a_test() -> None:
    """Each of these is named like one, and once."""
    form = re.compile(r"tests/(?:\w+/)*test_\w+\.py::test_\w+")
    odd = [one for one in CLAIMS if not one.tests or not all(map(form.fullmatch, one.tests))]
    twice = [one for one in CLAIMS if len({*one.tests}) < len(one.tests)]
    assert (odd, twice) == ([], []), "write below each claim of tests/claims.rst the tests that hold it"


def test_every_section_has_claims() -> None:
    """The sections are those of the README, in its order."""
    listed = list(dict.fromkeys(one.section for one in CLAIMS))
    expected = [title for title in README if title not in WITHOUT_CLAIMS]
    assert listed == expected, "tests/claims.rst has another order of sections than README.rst, or lacks one"
    assert expected[0] == BEFORE_THE_SECTIONS


def test_a_claim_is_listed_once() -> None:
    """So there is one place to change."""
    words = [(one.section, one.words) for one in CLAIMS]
    assert [one for one in {*words} if words.count(one) > 1] == []


def test_the_page_can_be_read() -> None:
    """It is valid, its lines are not too long, and every item of it was understood."""
    document = publish_doctree(PAGE, settings_overrides={"report_level": 5, "file_insertion_enabled": False})
    assert [each.astext() for each in document.findall() if isinstance(each, system_message)] == []
    assert max(map(len, PAGE.splitlines())) <= 120
    assert sum(line[:2] == "- " for line in PAGE.splitlines()) == len(CLAIMS)
    assert sum(line[:4] == "  - " for line in PAGE.splitlines()) == sum(len(one.tests) for one in CLAIMS)


# Numbers that the README writes out


def default(name: str) -> Any:
    """Return the default of an argument of the middleware."""
    return inspect.signature(SQLAlchemyMiddleware).parameters[name].default


NUMBERS: dict[str, tuple[Any, Any]] = {
    "up to ``replay_limit`` bytes (1 MiB)": (default("replay_limit"), 2**20),
    "and 1,000 messages": (retry.MOST_MESSAGES, 1000),
    "a random pause of up to 20 ms, then 40 ms, and so on to one second": (
        [longest_pause(attempt, ErrorKind.CONTENTION) for attempt in (1, 2, 99)],
        [0.02, 0.04, 1.0],
    ),
    "Without a connection it is up to 0.5, 1, then 2 seconds": (
        [longest_pause(attempt, ErrorKind.UNAVAILABLE) for attempt in (1, 2, 3, 99)],
        [0.5, 1.0, 2.0, 2.0],
    ),
    "A cancelled request waits three seconds for the answer": (cancellation.CANCELLED_LIMIT, 3.0),
    "each engine waits 2 s for a dark server": (loops.DISPOSE_LIMIT, 2.0),
    "is skipped with a warning for half a minute": (replicas.REST, 30.0),
    "how many times a request is retried after a transient error. Default: 0.": (default("retries"), 0),
    "1 for an error, 2 for a wrong argument, 3 for a database that ``migrate`` will help. With 4": (
        (FAILED, USAGE, BEHIND, REFUSED),
        (1, 2, 3, 4),
    ),
    "With 5 another process kept the lock": (LOCKED, 5),
}


@pytest.mark.parametrize("words", NUMBERS)
def test_a_number_is_that_of_the_code(words: str) -> None:
    """What is counted or waited for is what the reader was told."""
    found, told = NUMBERS[words]
    assert any(words in text for text in README.values()), "README.rst does not say this any more: change it here too"
    assert found == told


def test_the_kinds_of_errors_have_these_answers() -> None:
    """``ERROR_RESPONSES`` and ``transient`` agree with the reference."""
    told = README["Reference"].partition("The kind, or None. ")[2]
    parts = [re.findall(r"``([A-Z_]{2,})``", part) for part in re.split(r"409:|504:|``transient``, 503:", told)]
    conflict, timeout, transient = ([ErrorKind[name] for name in names] for names in parts[1:4])
    assert [ERROR_RESPONSES[kind] for kind in (*conflict, *timeout)] == [409, 504]
    assert {*conflict, *timeout, *transient} == {*ErrorKind}
    assert {kind for kind in ErrorKind if kind.transient} == {*transient}


def test_the_drivers_that_can_be_asked_are_those_of_the_table() -> None:
    """The README names each, as its own project does."""
    told = re.search(r"(asyncpg, psycopg, .+?) can be asked\.", README["What commits"])
    assert told is not None
    names = {name.casefold() for name in re.split(r", | and ", told[1])}
    assert names == {"sqlite3" if name == "pysqlite" else name for name in DRIVERS}
