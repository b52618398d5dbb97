"""Models that can look themselves up, in both kinds of session: ``Base``, a mixin, and functions."""

from asgi_sqla.models.declarative import NAMING_CONVENTION, Base, LookupMixin
from asgi_sqla.models.functions import (
    first_or_404,
    first_or_none,
    get_by_pk,
    get_one,
    get_one_or_none,
    get_or_404,
    get_or_create,
    update_or_create,
)
from asgi_sqla.models.lookups import NotFoundError

__all__ = [
    "NAMING_CONVENTION",
    "Base",
    "LookupMixin",
    "NotFoundError",
    "first_or_404",
    "first_or_none",
    "get_by_pk",
    "get_one",
    "get_one_or_none",
    "get_or_404",
    "get_or_create",
    "update_or_create",
]
