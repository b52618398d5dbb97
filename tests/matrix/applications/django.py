"""The application in Django (ASGI): views over our sessions, Django's own ORM unused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import django
from asgiref.sync import markcoroutinefunction
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from sqlalchemy.exc import DBAPIError

from matrix.applications import shop
from matrix.applications.shop import Query

settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["matrix.applications.django.Hook"],
    ROOT_URLCONF="matrix.applications.django",
    SECRET_KEY="of the matrix",
    USE_TZ=True,
)
django.setup()
# Django says that it consumes a sync iterator whole before it answers: the matrix says so too.
warnings.filterwarnings("ignore", "StreamingHttpResponse must consume synchronous iterators", Warning)


def query_of(request: HttpRequest) -> Query:
    return Query.of(dict(request.GET.lists()))


class Hook:
    """A Django middleware, with its handling of exceptions."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        await shop.hook_async(query_of(request))
        return await self.get_response(request)

    async def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if isinstance(exception, shop.HandledError):
            return HttpResponse(shop.seen_unit(), status=422)
        if isinstance(exception, DBAPIError):
            return HttpResponse("the framework's own answer", status=418)
        return None


async def write_async(request: HttpRequest) -> HttpResponse:
    query = query_of(request)
    await shop.write_async(query, Http404())
    return HttpResponse(status=query.status)


def write_sync(request: HttpRequest) -> HttpResponse:
    query = query_of(request)
    shop.write_sync(query, Http404())
    return HttpResponse(status=query.status)


async def read_async(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await shop.count_async(query_of(request)))


def read_sync(request: HttpRequest) -> HttpResponse:
    return HttpResponse(shop.count_sync(query_of(request)))


async def stream_async(request: HttpRequest) -> StreamingHttpResponse:
    query = query_of(request)
    await shop.write_async(query)
    return StreamingHttpResponse(shop.stream_async(query))


def stream_sync(request: HttpRequest) -> StreamingHttpResponse:
    query = query_of(request)
    shop.write_sync(query)
    return StreamingHttpResponse(shop.stream_sync(query))


async def state(request: HttpRequest) -> JsonResponse:
    return JsonResponse(await shop.state(query_of(request)))


writes = [path("async/write", write_async), path("sync/write", write_sync)]
urlpatterns = [
    *writes,
    path("async/read", read_async),
    path("sync/read", read_sync),
    path("async/stream", stream_async),
    path("sync/stream", stream_sync),
    path("state", state),
    path("mounted/", include(writes)),
]
app: Any = shop.wrapped(get_asgi_application())
