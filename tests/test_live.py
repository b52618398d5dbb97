"""The page of ``live()``: what it shows and what it never shows, and how a browser sees it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from support import browser
from support.asgi import Call, http_scope, respond
from support.databases import Backend, Item
from support.failing import execute, insert
from support.marks import KINDS
from support.servers import Server, wait_until

from asgi_sqla import ConfigurationError, Database, SQLAlchemyMiddleware, session_scope
from asgi_sqla.health import live
from asgi_sqla.health.live import KEPT

PICTURE = os.environ.get("ASGI_SQLA_TEST_PICTURE")
"""Where ``nox -s screenshot`` wants the picture of the README."""
WIDTH, HEIGHT = 800, 690
VOID = {"link", "meta"}

SHOP = '''
"""A shop with the faults that the page is to show."""

import asyncio

from fastapi import FastAPI, HTTPException
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from asgi_sqla import Database, SQLAlchemyMiddleware, session_scope
from asgi_sqla.health import live

db = Database("sqlite:///shop.db")
app = FastAPI()
app.add_middleware(SQLAlchemyMiddleware, database=db, error_responses={Exception: 409})
app.mount("/live", live(db))
parked = asyncio.Event()


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    orders: Mapped[list["Order"]] = relationship()


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id", deferrable=True, initially="DEFERRED"))


@app.get("/customers")
def list_customers() -> dict[str, int]:
    return {one.name: len(one.orders) for one in db.session.scalars(select(Customer))}


@app.post("/orders", status_code=201)
async def create_order(customer: int, item: str) -> None:
    db.async_session.add(Order(customer_id=customer, item=item))


@app.post("/payments")
async def pay() -> None:
    order = await db.async_session.scalar(select(Order).limit(1))
    await asyncio.sleep(0.25)  # asks another service
    if order is None:
        raise HTTPException(404)
    order.item = "paid"
    raise HTTPException(422)


@app.get("/reports/{year}")
async def read_report(year: int) -> None:
    await db.async_session.scalar(select(Order).limit(1))
    await parked.wait()


def fill() -> None:
    Base.metadata.create_all(db.engine)
    with session_scope(db) as session:
        session.add_all([Customer(name=f"customer {number}", orders=[Order(item="tea")]) for number in range(40)])
'''


class Outline(HTMLParser):
    """Reads a document as strictly as HTML allows: every element is closed, by itself and in order."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def page_of(app: Any, query: bytes = b"", method: str = "GET") -> Call:
    """Ask for the page."""
    return await Call(app, http_scope("/", method, query_string=query))()


def headers_of(call: Call) -> dict[str, str]:
    """Return the headers of its response."""
    return {name.decode(): value.decode() for name, value in call.messages[0]["headers"]}


@pytest.mark.parametrize("kind", KINDS)
async def test_it_shows_the_pools_the_running_and_the_ended_units(database: Database, kind: str) -> None:
    """A unit is among the running ones while it holds a connection, and among the others afterwards."""
    page = live(database)
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await execute(database, kind, "SELECT 4711 AS number")
        seen.append((await page_of(page)).body.decode())
        await respond(send)

    await Call(SQLAlchemyMiddleware(app, database), http_scope("/orders"))()
    after = (await page_of(page)).body.decode()

    running, _, ended = seen[0].partition("Units that have ended")
    assert "<td><b>GET /orders</b></td><td>1</td>" in running
    assert f"<td>write, {kind}</td><td>5</td><td>15</td><td>1</td>" in running
    assert "None yet" in ended
    running, _, ended = after.partition("Units that have ended")
    assert "No unit holds a connection" in running
    assert f"<td>write, {kind}</td><td>5</td><td>15</td><td>0</td>" in running
    assert "<b>GET /orders</b>" in ended
    assert "<td>200</td>" in ended
    assert "SELECT 4711 AS number" in ended


async def test_the_last_hundred_units_are_kept(sqlite: Backend) -> None:
    """The newest is the first, and there is one row for each."""
    database = Database(sqlite.url)
    page = live(database)
    for number in range(KEPT + 3):
        with session_scope(database) as session:
            session.execute(text(f"SELECT {number} AS number"))
    shown = (await page_of(page)).body.decode()
    numbers = re.findall(r"<summary><code>SELECT (\d+) AS number", shown)
    assert numbers == [str(number) for number in range(KEPT + 2, 2, -1)]
    database.dispose()


async def test_one_page_shows_several_databases(sqlite: Backend, global_db: Database) -> None:
    """A unit that used both is listed once, with the sums of both."""
    first, second = Database(sqlite.url), Database(sqlite.url)
    page = live(first, second, global_db)
    with session_scope(first):
        first.session.execute(text("SELECT 1"))
        second.session.execute(text("SELECT 2"))
    shown = (await page_of(page)).body.decode()
    assert shown.count("<section>") == 4
    assert shown.count('<tr class="more">') == 1
    assert "not configured" in shown
    for one in (first, second):
        one.dispose()


async def test_a_unit_with_trouble_says_why(sqlite: Backend) -> None:
    """What failed, and its attempts, are below its row."""
    database = Database(sqlite.url)
    page = live(database)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await insert(database, "async", name="tea", owner_id=404)
        await respond(send, 201)

    await Call(SQLAlchemyMiddleware(app, database), http_scope("/orders", "POST"))()
    shown = (await page_of(page)).body.decode()
    assert '<span class="bad">failed</span>' in shown
    assert "<li>Failed: IntegrityError" in shown
    await database.async_dispose()


async def test_nothing_of_a_client_or_a_secret_becomes_markup(sqlite: Backend) -> None:
    """Paths and statements are escaped; the password and the parameters are not there."""
    database = Database(sqlite.url)
    secret = Database("postgresql://shop:s3cret@localhost/shop")
    page = live(database, secret)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await database.async_session.execute(text("SELECT '<b>bold</b>', :value"), {"value": "the parameter"})
        await respond(send)

    hostile = http_scope() | {"path": "/<script>alert(1)</script>\n\udcff\"'&"}
    await Call(SQLAlchemyMiddleware(app, database), hostile)()
    call = await page_of(page)
    shown = call.body.decode()
    outline = Outline(shown)
    assert outline.open == []
    assert {"script", "img", "iframe", "link", "form"} & {tag for tag, _ in outline.elements} == set()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown
    assert "s3cret" not in shown
    assert "the parameter" not in shown
    await database.async_dispose()


async def test_the_policy_allows_its_own_style_alone(sqlite: Backend) -> None:
    """A browser runs nothing else of it, even if a text were not escaped."""
    call = await page_of(live(Database(sqlite.url)))
    style = re.search(r"<style>(.*?)</style>", call.body.decode(), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    headers = headers_of(call)
    assert headers["content-security-policy"] == (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'"
    )
    assert (headers["cache-control"], headers["content-type"]) == ("no-store", "text/html; charset=utf-8")


@pytest.mark.parametrize(
    ("query", "seconds"),
    [(b"", None), (b"reload=5", "5"), (b"reload=0", "1"), (b"reload=99999", "3600"), (b"reload=x", None)],
)
async def test_it_reloads_itself_if_asked(sqlite: Backend, query: bytes, seconds: str | None) -> None:
    """The seconds are within bounds, and anything else changes nothing."""
    shown = (await page_of(live(Database(sqlite.url)), query)).body.decode()
    found = re.search(r'http-equiv="refresh" content="(\d+)"', shown)
    assert (found and found[1]) == seconds


async def test_get_and_head_alone_are_answered(sqlite: Backend) -> None:
    """HEAD has the headers of GET without its body."""
    page = live(Database(sqlite.url))
    head, post = await page_of(page, method="HEAD"), await page_of(page, method="POST")
    assert (head.status, head.body) == (200, b"")
    assert int(headers_of(head)["content-length"]) > 1000
    assert (post.status, headers_of(post)["allow"]) == (405, "GET, HEAD")
    with pytest.raises(ConfigurationError, match="websocket"):
        await page({"type": "websocket"}, None, None)


@pytest.mark.parametrize("wrong", ["sqlite://", None, Database, "postgresql://shop:s3cret@localhost/shop"])
def test_a_wrong_argument_says_what_to_write(wrong: Any) -> None:
    """It is named without a password."""
    with pytest.raises(ConfigurationError, match=r"write live\(db\)") as raised:
        live(Database("sqlite://"), wrong)
    assert "s3cret" not in str(raised.value)


async def test_a_database_without_a_page_makes_no_reports(sqlite: Backend) -> None:
    """A page that is made later sees units from then on, on engines that exist already too."""
    database = Database(sqlite.url)
    with session_scope(database) as session:
        session.execute(text("SELECT 'before'"))
    page = live(database)
    with session_scope(database) as session:
        session.execute(text("SELECT 'after'"))
    shown = (await page_of(page)).body.decode()
    assert ("SELECT &#x27;before&#x27;" in shown, "SELECT &#x27;after&#x27;" in shown) == (False, True)
    database.dispose()


async def test_a_database_is_configured_after_its_page(sqlite: Backend, global_db: Database) -> None:
    """The same arguments again change nothing, and others have the page too."""
    page = live(global_db)
    for number, most in enumerate((None, None, 3)):
        global_db.configure(sqlite.url, max_waiting=most)
        with session_scope(global_db) as session:
            session.add(Item(name=f"item {number}"))
        if number == 1:
            global_db.dispose()
    shown = (await page_of(page)).body.decode()
    assert shown.count('<span class="good">committed</span>') == 3
    global_db.dispose()


async def unpark(shop: Any) -> None:
    """Let the parked request go on."""
    shop.parked.set()


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium: apt-get install chromium, or nox -s screenshot")
def test_a_browser_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 800 pixels nothing has to be scrolled sideways, by day and by night; the picture is that of the README."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shop.py").write_text(SHOP)
    shop = __import__("shop")
    shop.fill()
    with Server(shop.app) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        client.post("/orders", params={"customer": 1, "item": "tea"})
        client.post("/orders", params={"customer": 4711, "item": "tea"})
        client.post("/payments")
        client.get("/customers")
        with browser.browser(tmp_path / "profile") as tab:
            parked = threading.Thread(target=httpx.get, args=(f"{server.url}/reports/2026",), kwargs={"timeout": 30})
            parked.start()
            assert wait_until(shop.db.holders)
            pictures = {}
            for scheme in browser.SCHEMES:
                tab.open(f"{server.url}/live/", width=WIDTH, height=HEIGHT, scheme=scheme)
                assert tab.evaluate("document.querySelectorAll('.units tbody tr:not(.more)').length") == 5
                tab.evaluate("document.querySelector('details').open = true")
                assert tab.evaluate("document.documentElement.scrollWidth") == WIDTH
                pictures[scheme] = tab.picture()
        server.call(unpark(shop))
        parked.join(30)
        server.call(shop.db.async_dispose())
    sys.modules.pop("shop")
    assert all(picture.startswith(b"\x89PNG") for picture in pictures.values())
    assert pictures["dark"] != pictures["light"]
    if PICTURE:
        Path(PICTURE).write_bytes(pictures["light"])
