"""The lookups as functions, for models of any base.

Holds: their types: an awaitable with an AsyncSession, a value otherwise.
Must not know: how anything is looked up.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, overload

from asgi_sqla.models import lookups
from asgi_sqla.models.calling import AnyAsyncSession, SyncSession, ask, merged, split, the_only
from asgi_sqla.models.lookups import Filters

M = TypeVar("M")


@overload
def get_by_pk(session: AnyAsyncSession, model: type[M], pk: Any, /) -> Awaitable[M | None]: ...
@overload
def get_by_pk(session: SyncSession, model: type[M], pk: Any, /) -> M | None: ...
@overload
def get_by_pk(model: type[M], pk: Any, /) -> M | None: ...
def get_by_pk(*arguments: Any) -> Any:
    """Return the row with the primary key ``pk``, or None.

    A row that the session has loaded already is returned without a query.

    - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
    - ``model``: the mapped class.
    - ``pk``: the value of the primary key. For a composite key it is a tuple in the order of its columns, or a mapping
      of their names.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.by_pk, session, model, the_only(model, rest))


@overload
def get_or_404(session: AnyAsyncSession, model: type[M], pk: Any, /) -> Awaitable[M]: ...
@overload
def get_or_404(session: SyncSession, model: type[M], pk: Any, /) -> M: ...
@overload
def get_or_404(model: type[M], pk: Any, /) -> M: ...
def get_or_404(*arguments: Any) -> Any:
    """Return the row with the primary key ``pk``.

    - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
    - ``model``: the mapped class.
    - ``pk``: the value of the primary key. For a composite key it is a tuple in the order of its columns, or a mapping
      of their names.

    Raises NotFoundError if there is none.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.by_pk_or_404, session, model, the_only(model, rest))


@overload
def get_one(session: AnyAsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any) -> Awaitable[M]: ...
@overload
def get_one(session: SyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any) -> M: ...
@overload
def get_one(model: type[M], filters: Filters = ..., /, **attributes: Any) -> M: ...
def get_one(*arguments: Any, **attributes: Any) -> Any:
    """Return the only row with these attributes.

    - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
    - ``model``: the mapped class.
    - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
    - ``**attributes``: the attributes and their values.

    Raises SQLAlchemy's ``NoResultFound`` or ``MultipleResultsFound``, naming the model and the filters.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.one, session, model, merged(model, rest, attributes))


@overload
def get_one_or_none(
    session: AnyAsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> Awaitable[M | None]: ...
@overload
def get_one_or_none(session: SyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any) -> M | None: ...
@overload
def get_one_or_none(model: type[M], filters: Filters = ..., /, **attributes: Any) -> M | None: ...
def get_one_or_none(*arguments: Any, **attributes: Any) -> Any:
    """Return the only row with these attributes, or None.

    - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
    - ``model``: the mapped class.
    - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
    - ``**attributes``: the attributes and their values.

    Raises SQLAlchemy's ``MultipleResultsFound`` if there are several.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.one_or_none, session, model, merged(model, rest, attributes))


@overload
def first_or_none(
    session: AnyAsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> Awaitable[M | None]: ...
@overload
def first_or_none(session: SyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any) -> M | None: ...
@overload
def first_or_none(model: type[M], filters: Filters = ..., /, **attributes: Any) -> M | None: ...
def first_or_none(*arguments: Any, **attributes: Any) -> Any:
    """Return the row with these attributes that has the lowest primary key, or None.

    - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
    - ``model``: the mapped class.
    - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
    - ``**attributes``: the attributes and their values.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.first_or_none, session, model, merged(model, rest, attributes))


@overload
def first_or_404(
    session: AnyAsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> Awaitable[M]: ...
@overload
def first_or_404(session: SyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any) -> M: ...
@overload
def first_or_404(model: type[M], filters: Filters = ..., /, **attributes: Any) -> M: ...
def first_or_404(*arguments: Any, **attributes: Any) -> Any:
    """Return the row with these attributes that has the lowest primary key.

    - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
    - ``model``: the mapped class.
    - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
    - ``**attributes``: the attributes and their values.

    Raises NotFoundError if there is none.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.first_or_404, session, model, merged(model, rest, attributes))


@overload
def get_or_create(
    session: AnyAsyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> Awaitable[tuple[M, bool]]: ...
@overload
def get_or_create(
    session: SyncSession, model: type[M], filters: Filters = ..., /, **attributes: Any
) -> tuple[M, bool]: ...
@overload
def get_or_create(model: type[M], filters: Filters = ..., /, **attributes: Any) -> tuple[M, bool]: ...
def get_or_create(*arguments: Any, **attributes: Any) -> Any:
    """Return the only row with these attributes, and False; or create it, and return it and True.

    Several sessions can create the same row at once if a unique constraint covers the attributes. Then one of them
    creates it, and the others get it: their INSERT is undone by a SAVEPOINT, and they read again.

    - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
    - ``model``: the mapped class.
    - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
    - ``**attributes``: the attributes and their values.

    Raises SQLAlchemy's ``MultipleResultsFound`` if there are several rows, and ``IntegrityError`` if the row cannot be
    inserted for another reason.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.get_or_create, session, model, merged(model, rest, attributes))


@overload
def update_or_create(
    session: AnyAsyncSession,
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
    session: SyncSession,
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
    """Update the only row with these attributes, or create it; return it, and whether it was created.

    The change is flushed. Concurrent calls are as safe as those of ``get_or_create``.

    - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
    - ``model``: the mapped class.
    - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
    - ``**attributes``: the attributes and their values.
    - ``defaults``: a mapping of the attributes to set on a row that was found; default: none.
    - ``create_defaults``: a mapping of the attributes that a new row gets besides the filters; default: ``defaults``.
      An empty mapping means no more attributes.

    Raises what ``get_or_create`` raises.
    """
    session, (model, *rest) = split(arguments)
    return ask(lookups.update_or_create, session, model, merged(model, rest, attributes), defaults, create_defaults)
