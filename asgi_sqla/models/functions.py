"""The lookups as functions, for models of any base.

Lives here: their types: an awaitable for an AsyncSession, a value otherwise.
Must not know: how anything is looked up.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from asgi_sqla.models import lookups
from asgi_sqla.models.calling import ask, merged, split, the_only
from asgi_sqla.models.lookups import Filters

M = TypeVar("M")


@overload
def get_by_pk(session: AsyncSession, model: type[M], pk: Any, /) -> Awaitable[M | None]: ...
@overload
def get_by_pk(session: Session, model: type[M], pk: Any, /) -> M | None: ...
@overload
def get_by_pk(model: type[M], pk: Any, /) -> M | None: ...
def get_by_pk(*arguments: Any) -> Any:
    """Return the row with the primary key ``pk``, or None.

    A key of several columns is a tuple in their order, or a mapping of their names. A row the
    session has already is returned without asking the database.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.by_pk, session, model, the_only(model, rest))


@overload
def get_or_404(session: AsyncSession, model: type[M], pk: Any, /) -> Awaitable[M]: ...
@overload
def get_or_404(session: Session, model: type[M], pk: Any, /) -> M: ...
@overload
def get_or_404(model: type[M], pk: Any, /) -> M: ...
def get_or_404(*arguments: Any) -> Any:
    """Return the row with the primary key ``pk``; raise NotFoundError if there is none."""
    session, (model, *rest) = split(arguments)
    return ask(lookups.by_pk_or_404, session, model, the_only(model, rest))


@overload
def get_one(session: AsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any) -> Awaitable[M]: ...
@overload
def get_one(session: Session, model: type[M], filters: Filters = ..., /, **attributes: Any) -> M: ...
@overload
def get_one(model: type[M], filters: Filters = ..., /, **attributes: Any) -> M: ...
def get_one(*arguments: Any, **attributes: Any) -> Any:
    """Return the only row with those attributes.

    Raises ``NoResultFound`` and ``MultipleResultsFound`` of SQLAlchemy, naming model and filters.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.one, session, model, merged(model, rest, attributes))


@overload
def get_one_or_none(
    session: AsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> Awaitable[M | None]: ...
@overload
def get_one_or_none(session: Session, model: type[M], filters: Filters = ..., /, **attributes: Any) -> M | None: ...
@overload
def get_one_or_none(model: type[M], filters: Filters = ..., /, **attributes: Any) -> M | None: ...
def get_one_or_none(*arguments: Any, **attributes: Any) -> Any:
    """Return the only row with those attributes, or None; raise ``MultipleResultsFound`` for several."""
    session, (model, *rest) = split(arguments)
    return ask(lookups.one_or_none, session, model, merged(model, rest, attributes))


@overload
def first_or_none(
    session: AsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> Awaitable[M | None]: ...
@overload
def first_or_none(session: Session, model: type[M], filters: Filters = ..., /, **attributes: Any) -> M | None: ...
@overload
def first_or_none(model: type[M], filters: Filters = ..., /, **attributes: Any) -> M | None: ...
def first_or_none(*arguments: Any, **attributes: Any) -> Any:
    """Return the row with those attributes that has the lowest primary key, or None."""
    session, (model, *rest) = split(arguments)
    return ask(lookups.first_or_none, session, model, merged(model, rest, attributes))


@overload
def first_or_404(
    session: AsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> Awaitable[M]: ...
@overload
def first_or_404(session: Session, model: type[M], filters: Filters = ..., /, **attributes: Any) -> M: ...
@overload
def first_or_404(model: type[M], filters: Filters = ..., /, **attributes: Any) -> M: ...
def first_or_404(*arguments: Any, **attributes: Any) -> Any:
    """Return what ``first_or_none`` returns; raise NotFoundError instead of None."""
    session, (model, *rest) = split(arguments)
    return ask(lookups.first_or_404, session, model, merged(model, rest, attributes))


@overload
def get_or_create(
    session: AsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> Awaitable[tuple[M, bool]]: ...
@overload
def get_or_create(session: Session, model: type[M], filters: Filters = ..., /, **attributes: Any) -> tuple[M, bool]: ...
@overload
def get_or_create(model: type[M], filters: Filters = ..., /, **attributes: Any) -> tuple[M, bool]: ...
def get_or_create(*arguments: Any, **attributes: Any) -> Any:
    """Return the only row with those attributes, made of them if there was none, and whether it was made.

    Of several sessions that make it at once, one makes it and the others get it, provided that a
    unique constraint covers the attributes: then the one that comes late is undone by a SAVEPOINT and
    reads again. Raises ``MultipleResultsFound`` for several rows, and ``IntegrityError`` where the
    values cannot be inserted for another reason.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.get_or_create, session, model, merged(model, rest, attributes))


@overload
def update_or_create(
    session: AsyncSession,
    model: type[M],
    filters: Filters = ...,
    /,
    *,
    defaults: Filters | None = None,
    create_defaults: Filters | None = None,
    **attributes: Any,
) -> Awaitable[tuple[M, bool]]: ...
@overload
def update_or_create(
    session: Session,
    model: type[M],
    filters: Filters = ...,
    /,
    *,
    defaults: Filters | None = None,
    create_defaults: Filters | None = None,
    **attributes: Any,
) -> tuple[M, bool]: ...
@overload
def update_or_create(
    model: type[M],
    filters: Filters = ...,
    /,
    *,
    defaults: Filters | None = None,
    create_defaults: Filters | None = None,
    **attributes: Any,
) -> tuple[M, bool]: ...
def update_or_create(
    *arguments: Any, defaults: Filters | None = None, create_defaults: Filters | None = None, **attributes: Any
) -> Any:
    """Update the only row with those attributes, or make it; return it, and whether it was made.

    ``defaults`` are set on a row that was found. A new one is made of the filters and
    ``create_defaults``, or of ``defaults`` if that is None; an empty mapping is taken as it is. Safe
    against races as ``get_or_create`` is, and flushed.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.update_or_create, session, model, merged(model, rest, attributes), defaults, create_defaults)
