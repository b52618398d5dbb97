"""``Base``, and the mixin for models that have a base of their own.

Lives here: the classes, and the types of their lookups.
Must not know: how anything is looked up.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, ClassVar, Self, overload

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session

from asgi_sqla.models import lookups
from asgi_sqla.models.calling import ask, merged, split, the_only
from asgi_sqla.models.lookups import Filters

NAMING_CONVENTION: dict[str, str] = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names every constraint, so that migrations can find it: the convention of SQLAlchemy's documentation."""


class LookupMixin:
    """Gives a mapped class lookups as class methods, each in the session it is given.

    Given an ``AsyncSession`` they return an awaitable, given a ``Session`` the value. Given none they
    use the ``Session`` of the current unit of work, of the database in the class's ``__database__``,
    or of the global ``db`` without one; on an event loop that blocks, so pass an AsyncSession there.
    Filters are keyword arguments; one whose name is taken goes into a mapping before them.
    """

    @overload
    @classmethod
    def get_by_pk(cls, session: AsyncSession, pk: Any, /) -> Awaitable[Self | None]: ...
    @overload
    @classmethod
    def get_by_pk(cls, session: Session, pk: Any, /) -> Self | None: ...
    @overload
    @classmethod
    def get_by_pk(cls, pk: Any, /) -> Self | None: ...
    @classmethod
    def get_by_pk(cls, /, *arguments: Any) -> Any:
        """Return the row with the primary key ``pk``, or None.

        A key of several columns is a tuple in their order, or a mapping of their names. A row the
        session has already is returned without asking the database.
        """
        session, rest = split(arguments)
        return ask(lookups.by_pk, session, cls, the_only(cls, rest))

    @overload
    @classmethod
    def get_or_404(cls, session: AsyncSession, pk: Any, /) -> Awaitable[Self]: ...
    @overload
    @classmethod
    def get_or_404(cls, session: Session, pk: Any, /) -> Self: ...
    @overload
    @classmethod
    def get_or_404(cls, pk: Any, /) -> Self: ...
    @classmethod
    def get_or_404(cls, /, *arguments: Any) -> Any:
        """Return the row with the primary key ``pk``; raise NotFoundError if there is none."""
        session, rest = split(arguments)
        return ask(lookups.by_pk_or_404, session, cls, the_only(cls, rest))

    @overload
    @classmethod
    def get_one(cls, session: AsyncSession, filters: Filters = ..., /, **attributes: Any) -> Awaitable[Self]: ...
    @overload
    @classmethod
    def get_one(cls, session: Session, filters: Filters = ..., /, **attributes: Any) -> Self: ...
    @overload
    @classmethod
    def get_one(cls, filters: Filters = ..., /, **attributes: Any) -> Self: ...
    @classmethod
    def get_one(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the only row with those attributes.

        Raises ``NoResultFound`` and ``MultipleResultsFound`` of SQLAlchemy, naming model and filters.
        """
        session, rest = split(arguments)
        return ask(lookups.one, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def get_one_or_none(
        cls, session: AsyncSession, filters: Filters = ..., /, **attributes: Any
    ) -> Awaitable[Self | None]: ...
    @overload
    @classmethod
    def get_one_or_none(cls, session: Session, filters: Filters = ..., /, **attributes: Any) -> Self | None: ...
    @overload
    @classmethod
    def get_one_or_none(cls, filters: Filters = ..., /, **attributes: Any) -> Self | None: ...
    @classmethod
    def get_one_or_none(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the only row with those attributes, or None; raise ``MultipleResultsFound`` for several."""
        session, rest = split(arguments)
        return ask(lookups.one_or_none, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def first_or_none(
        cls, session: AsyncSession, filters: Filters = ..., /, **attributes: Any
    ) -> Awaitable[Self | None]: ...
    @overload
    @classmethod
    def first_or_none(cls, session: Session, filters: Filters = ..., /, **attributes: Any) -> Self | None: ...
    @overload
    @classmethod
    def first_or_none(cls, filters: Filters = ..., /, **attributes: Any) -> Self | None: ...
    @classmethod
    def first_or_none(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the row with those attributes that has the lowest primary key, or None."""
        session, rest = split(arguments)
        return ask(lookups.first_or_none, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def first_or_404(cls, session: AsyncSession, filters: Filters = ..., /, **attributes: Any) -> Awaitable[Self]: ...
    @overload
    @classmethod
    def first_or_404(cls, session: Session, filters: Filters = ..., /, **attributes: Any) -> Self: ...
    @overload
    @classmethod
    def first_or_404(cls, filters: Filters = ..., /, **attributes: Any) -> Self: ...
    @classmethod
    def first_or_404(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return what ``first_or_none`` returns; raise NotFoundError instead of None."""
        session, rest = split(arguments)
        return ask(lookups.first_or_404, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def get_or_create(
        cls, session: AsyncSession, filters: Filters = ..., /, **attributes: Any
    ) -> Awaitable[tuple[Self, bool]]: ...
    @overload
    @classmethod
    def get_or_create(cls, session: Session, filters: Filters = ..., /, **attributes: Any) -> tuple[Self, bool]: ...
    @overload
    @classmethod
    def get_or_create(cls, filters: Filters = ..., /, **attributes: Any) -> tuple[Self, bool]: ...
    @classmethod
    def get_or_create(cls, /, *arguments: Any, **attributes: Any) -> Any:
        """Return the only row with those attributes, made of them if there was none, and whether it was made.

        Of several sessions that make it at once, one makes it and the others get it, provided that a
        unique constraint covers the attributes: then the one that comes late is undone by a SAVEPOINT and
        reads again. Raises ``MultipleResultsFound`` for several rows, and ``IntegrityError`` where the
        values cannot be inserted for another reason.
        """
        session, rest = split(arguments)
        return ask(lookups.get_or_create, session, cls, merged(cls, rest, attributes))

    @overload
    @classmethod
    def update_or_create(
        cls,
        session: AsyncSession,
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
        session: Session,
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
        """Update the only row with those attributes, or make it; return it, and whether it was made.

        ``defaults`` are set on a row that was found. A new one is made of the filters and
        ``create_defaults``, or of ``defaults`` if that is None; an empty mapping is taken as it is. Safe
        against races as ``get_or_create`` is, and flushed.
        """
        session, rest = split(arguments)
        return ask(lookups.update_or_create, session, cls, merged(cls, rest, attributes), defaults, create_defaults)


class Base(AsyncAttrs, LookupMixin, DeclarativeBase):
    """A declarative base with awaitable attributes, lookups, and a naming convention."""

    metadata: ClassVar[MetaData] = MetaData(naming_convention=NAMING_CONVENTION)
