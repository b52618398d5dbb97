"""``Base``, and the mixin for models that have another base.

Holds: the classes, and the types of their lookups.
Must not know: how anything is looked up.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, ClassVar, Self, overload

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase

from asgi_sqla.models import lookups
from asgi_sqla.models.calling import AnyAsyncSession, SyncSession, ask, merged, split, the_only
from asgi_sqla.models.lookups import Filters

NAMING_CONVENTION: dict[str, str] = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names for every constraint, so that migrations can find it: the convention of SQLAlchemy's documentation."""


class LookupMixin:
    """Give a mapped class lookups as class methods, each in the session that it gets.

    With an ``AsyncSession`` they return an awaitable, with a ``Session`` the value. Without a session they use the
    ``Session`` of the current unit of work, which blocks an event loop; so pass an AsyncSession there. Its database is
    ``__database__`` of the class, or else the global ``db``.

    Raises ConfigurationError for an unknown attribute, and NoUnitOfWorkError without a session outside any unit.
    """

    @overload
    @classmethod
    def get_by_pk(cls, session: AnyAsyncSession, pk: Any, /) -> Awaitable[Self | None]: ...
    @overload
    @classmethod
    def get_by_pk(cls, session: SyncSession, pk: Any, /) -> Self | None: ...
    @overload
    @classmethod
    def get_by_pk(cls, pk: Any, /) -> Self | None: ...
    @classmethod
    def get_by_pk(cls, /, *arguments: Any) -> Any:
        """Return the row with the primary key ``pk``, or None.

        A row that the session has loaded already is returned without a query.

        - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
        - ``pk``: the value of the primary key. For a composite key it is a tuple in the order of its columns, or a
          mapping of their names.
        """
        session, rest = split(arguments)
        return ask(lookups.by_pk, session, cls, the_only(cls, rest))

    @overload
    @classmethod
    def get_or_404(cls, session: AnyAsyncSession, pk: Any, /) -> Awaitable[Self]: ...
    @overload
    @classmethod
    def get_or_404(cls, session: SyncSession, pk: Any, /) -> Self: ...
    @overload
    @classmethod
    def get_or_404(cls, pk: Any, /) -> Self: ...
    @classmethod
    def get_or_404(cls, /, *arguments: Any) -> Any:
        """Return the row with the primary key ``pk``.

        - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
        - ``pk``: the value of the primary key. For a composite key it is a tuple in the order of its columns, or a
          mapping of their names.

        Raises NotFoundError if there is none.
        """
        session, rest = split(arguments)
        return ask(lookups.by_pk_or_404, session, cls, the_only(cls, rest))

    @overload
    @classmethod
    def get_one(cls, session: AnyAsyncSession, filters: Filters = ..., /, **attributes: Any) -> Awaitable[Self]: ...
    @overload
    @classmethod
    def get_one(cls, session: SyncSession, filters: Filters = ..., /, **attributes: Any) -> Self: ...
    @overload
    @classmethod
    def get_one(cls, filters: Filters = ..., /, **attributes: Any) -> Self: ...
    @classmethod
    def get_one(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the only row with these attributes.

        - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
        - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
        - ``**attributes``: the attributes and their values.

        Raises SQLAlchemy's ``NoResultFound`` or ``MultipleResultsFound``, naming the model and the filters.
        """
        session, rest = split(arguments)
        return ask(lookups.one, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def get_one_or_none(
        cls, session: AnyAsyncSession, filters: Filters = ..., /, **attributes: Any
    ) -> Awaitable[Self | None]: ...
    @overload
    @classmethod
    def get_one_or_none(cls, session: SyncSession, filters: Filters = ..., /, **attributes: Any) -> Self | None: ...
    @overload
    @classmethod
    def get_one_or_none(cls, filters: Filters = ..., /, **attributes: Any) -> Self | None: ...
    @classmethod
    def get_one_or_none(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the only row with these attributes, or None.

        - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
        - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
        - ``**attributes``: the attributes and their values.

        Raises SQLAlchemy's ``MultipleResultsFound`` if there are several.
        """
        session, rest = split(arguments)
        return ask(lookups.one_or_none, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def first_or_none(
        cls, session: AnyAsyncSession, filters: Filters = ..., /, **attributes: Any
    ) -> Awaitable[Self | None]: ...
    @overload
    @classmethod
    def first_or_none(cls, session: SyncSession, filters: Filters = ..., /, **attributes: Any) -> Self | None: ...
    @overload
    @classmethod
    def first_or_none(cls, filters: Filters = ..., /, **attributes: Any) -> Self | None: ...
    @classmethod
    def first_or_none(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the row with these attributes that has the lowest primary key, or None.

        - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
        - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
        - ``**attributes``: the attributes and their values.
        """
        session, rest = split(arguments)
        return ask(lookups.first_or_none, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def first_or_404(
        cls, session: AnyAsyncSession, filters: Filters = ..., /, **attributes: Any
    ) -> Awaitable[Self]: ...
    @overload
    @classmethod
    def first_or_404(cls, session: SyncSession, filters: Filters = ..., /, **attributes: Any) -> Self: ...
    @overload
    @classmethod
    def first_or_404(cls, filters: Filters = ..., /, **attributes: Any) -> Self: ...
    @classmethod
    def first_or_404(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the row with these attributes that has the lowest primary key.

        - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
        - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
        - ``**attributes``: the attributes and their values.

        Raises NotFoundError if there is none.
        """
        session, rest = split(arguments)
        return ask(lookups.first_or_404, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def get_or_create(
        cls, session: AnyAsyncSession, filters: Filters = ..., /, **attributes: Any
    ) -> Awaitable[tuple[Self, bool]]: ...
    @overload
    @classmethod
    def get_or_create(cls, session: SyncSession, filters: Filters = ..., /, **attributes: Any) -> tuple[Self, bool]: ...
    @overload
    @classmethod
    def get_or_create(cls, filters: Filters = ..., /, **attributes: Any) -> tuple[Self, bool]: ...
    @classmethod
    def get_or_create(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the only row with these attributes, and False; or create it, and return it and True.

        Several sessions can create the same row at once if a unique constraint covers the attributes. Then one of them
        creates it, and the others get it: their INSERT is undone by a SAVEPOINT, and they read again.

        - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
        - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
        - ``**attributes``: the attributes and their values.

        Raises SQLAlchemy's ``MultipleResultsFound`` if there are several rows, and ``IntegrityError`` if the row cannot
        be inserted for another reason.
        """
        session, rest = split(arguments)
        return ask(lookups.get_or_create, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def update_or_create(
        cls,
        session: AnyAsyncSession,
        filters: Filters = ...,
        /,
        *,
        defaults: Filters | None = None,
        create_defaults: Filters | None = None,
        **attributes: Any,
    ) -> Awaitable[tuple[Self, bool]]: ...
    @overload
    @classmethod
    def update_or_create(
        cls,
        session: SyncSession,
        filters: Filters = ...,
        /,
        *,
        defaults: Filters | None = None,
        create_defaults: Filters | None = None,
        **attributes: Any,
    ) -> tuple[Self, bool]: ...
    @overload
    @classmethod
    def update_or_create(
        cls,
        filters: Filters = ...,
        /,
        *,
        defaults: Filters | None = None,
        create_defaults: Filters | None = None,
        **attributes: Any,
    ) -> tuple[Self, bool]: ...
    @classmethod
    def update_or_create(
        cls,
        /,
        *arguments: Any,
        defaults: Filters | None = None,
        create_defaults: Filters | None = None,
        **attributes: Any,
    ) -> Any:
        """Update the only row with these attributes, or create it; return it, and whether it was created.

        The change is flushed. Concurrent calls are as safe as those of ``get_or_create``.

        - ``session``: a session or ``scoped_session``; default: the ``Session`` of the current unit of work.
        - ``filters``: a mapping of attributes to values, for attributes whose names are taken; default: none.
        - ``**attributes``: the attributes and their values.
        - ``defaults``: a mapping of the attributes to set on a row that was found; default: none.
        - ``create_defaults``: a mapping of the attributes that a new row gets besides the filters; default:
          ``defaults``. An empty mapping means no more attributes.

        Raises what ``get_or_create`` raises.
        """
        session, rest = split(arguments)
        return ask(lookups.update_or_create, session, cls, merged(cls, rest, attributes), defaults, create_defaults)


class Base(AsyncAttrs, LookupMixin, DeclarativeBase):
    """A declarative base with the lookups of ``LookupMixin``, awaitable attributes, and names for constraints."""

    metadata: ClassVar[MetaData] = MetaData(naming_convention=NAMING_CONVENTION)
