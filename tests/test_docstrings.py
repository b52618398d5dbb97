"""Docstrings, comments and messages: their form, their length and their words."""

from __future__ import annotations

import ast
import inspect
import io
import pydoc
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_overloads

import pytest

import asgi_sqla
from asgi_sqla import cli, health, migrations, models, observe, settings, telemetry, testing
from asgi_sqla.database import DatabaseOptions
from asgi_sqla.unit.scope import SessionScope

HOUSE = Path(asgi_sqla.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
ROOMS = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]

MAX_WORDS = 35
"""Words of a sentence."""
NOT_OURS = re.compile(
    r"\b(begun again|tried again|gives? up|given up|gave up|whoever|of whom|of which|manner|here)\b",
    re.IGNORECASE,
)
"""Words of our own where the field has a word, and inverted order: write retry, attempt, disconnect and so on."""


def public() -> Iterator[tuple[str, Any]]:
    """Yield every public function, class, method and property by its dotted name."""
    for module in (asgi_sqla, health, models, migrations, observe, telemetry, testing, cli):
        for name in module.__all__:
            yield from described(f"{module.__name__}.{name}", getattr(module, name))
    for name in ("DatabaseSettings", "database_from", "migrations_from"):
        yield from described(f"{settings.__name__}.{name}", getattr(settings, name))
    yield "asgi_sqla.unit.scope.SessionScope.__call__", SessionScope.__call__


def described(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield ``thing``, and the public members of a class of ours."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return
    yield name, thing
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for member, value in vars(thing).items():
            known = inspect.isfunction(value) or isinstance(value, property | classmethod)
            if member[0] != "_" and known:
                yield f"{name}.{member}", getattr(value, "__func__", value)


def parameters(thing: Any) -> list[str]:
    """Return the names of its parameters, as a docstring lists them."""
    if thing is settings.DatabaseSettings:
        return list(settings.DatabaseSettings.model_fields)
    function: Any = vars(thing).get("__init__") if inspect.isclass(thing) else thing
    if not inspect.isfunction(function) or thing is models.Base:  # a property, or a class that others construct
        return []
    found: dict[str, None] = {}
    for each in get_overloads(function) or [function]:
        for name, parameter in inspect.signature(getattr(each, "__func__", each)).parameters.items():
            many = parameter.kind is parameter.VAR_POSITIONAL
            found[f"*{name}" if many else f"**{name}" if parameter.kind is parameter.VAR_KEYWORD else name] = None
    if thing is asgi_sqla.Database:
        found = {"url": None, **dict.fromkeys(DatabaseOptions.__annotations__)}
    return [name for name in found if name not in ("self", "cls")]


PUBLIC = dict(public())
LISTED = {name: thing for name, thing in PUBLIC.items() if parameters(thing) and "Error" not in name}


@pytest.mark.parametrize("name", LISTED)
def test_a_docstring_lists_every_argument(name: str) -> None:
    """Each parameter is an item of one list, in any order but with none missing, so that editors show one per line."""
    listed = re.findall(r"^- ((?:``[^`]+``(?:, )?)+):", inspect.getdoc(LISTED[name]) or "", re.MULTILINE)
    names = [one for item in listed for one in re.findall("``([^`]+)``", item)]
    assert sorted(names) == sorted(parameters(LISTED[name]))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_begins_with_one_sentence(name: str) -> None:
    """Its first line is the promise to the caller: a whole sentence, and nothing else in its paragraph."""
    first, *rest = (inspect.getdoc(PUBLIC[name]) or "").splitlines()
    assert re.fullmatch(r"\S.*[.:]", first)
    assert rest[:1] in ([], [""])


def test_help_begins_with_the_promise() -> None:
    """The package says what it does before it lists anything."""
    text = pydoc.plain(pydoc.render_doc(asgi_sqla))
    name, description = text.split("DESCRIPTION")
    assert 'nobody is told "done" before the database is' in name
    assert description.split()[:5] == ["A", "middleware", "gives", "every", "request"]


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_module_says_its_promise_first(path: Path) -> None:
    """Then come two lines: what it holds, and what it must not know."""
    paragraphs = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")
    assert len(paragraphs) > 1
    assert [paragraph for paragraph in paragraphs[:-1] if "Holds:" in paragraph or "Must not" in paragraph] == []
    assert re.fullmatch(r"Holds: .*\.\nMust not know: .*\.", paragraphs[-1], re.DOTALL)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every docstring, comment and message of a file with its line."""
    source = path.read_text()
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value
    last = -1
    block = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.start[0] == last + 1 and token.line.lstrip()[0] == "#":
            last, block = last + 1, f"{block} {token.string.lstrip('# ')}"
        elif token.type == tokenize.COMMENT:
            yield last, block
            last, block = token.start[0], token.string.lstrip("# ")
    yield last, block


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text; each item of a list, and each line of a module's head, begins one."""
    for paragraph in re.split(r"\n\s*\n|\n\s*- |\n(?=Must not know:|May know:)", re.sub("``[^`]*``", "x", text)):
        yield from re.split(r"(?<=[.!?])\)?\s+", " ".join(paragraph.split()))


def test_no_sentence_is_long() -> None:
    """Longer ones have to be read twice. A template of a script is no sentence."""
    found = [
        f"{path.relative_to(HOUSE)}:{line}: {sentence}"
        for path in FILES
        for line, text in texts(path)
        for sentence in sentences(text)
        if len(sentence.split()) > MAX_WORDS and "${" not in sentence
    ]
    assert found == []


def test_texts_use_the_words_of_the_field() -> None:
    """A reader knows them from other projects."""
    found = [
        f"{path.relative_to(HOUSE)}:{line}: {match[0]}"
        for path in FILES
        for line, text in texts(path)
        for match in NOT_OURS.finditer(text.replace("%(here)s", ""))
    ]
    assert found == []
