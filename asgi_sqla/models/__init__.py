"""Lookups for models, in both kinds of session: a base class, a mixin, and functions.

With an ``AsyncSession`` each lookup returns an awaitable, with a ``Session`` the value.

- ``Base``: a declarative base with the lookups, awaitable attributes and named constraints.
- ``LookupMixin``: the lookups as class methods, for a base of your own.
- ``get_by_pk``, ``get_one`` and the other functions: the lookups for any mapped class.
- ``NotFoundError``: what ``get_or_404`` and ``first_or_404`` raise.
- ``NAMING_CONVENTION``: the names that ``Base`` gives to constraints.
"""

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
