"""The application: ``uvicorn shop.main:app``."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from asgi_sqla import ERROR_RESPONSES, SQLAlchemyMiddleware
from asgi_sqla.models import NotFoundError
from shop.db import db, migrations
from shop.routers import orders, people

app = FastAPI(title="Shop")
app.include_router(orders.router)
app.include_router(people.router)
app.add_middleware(
    SQLAlchemyMiddleware,
    database=db,
    on_startup=migrations.async_migrate,  # safe in many processes at once
    error_responses={
        **ERROR_RESPONSES,  # 409 for a conflict, 503 for a database that does not answer
        NotFoundError: JSONResponse({"detail": "not found"}, status_code=404),
    },
)
