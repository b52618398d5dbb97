"""The lookups themselves: each one body, on a ``Session``.

Holds: the queries, the race of two sessions that create the same row, and the errors about missing and extra rows.
Must not know: whether anything is awaited, which database is used, or the classes of the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Engine, inspect, select
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, NoResultFound, OperationalError
from sqlalchemy.orm import Mapper, Session

from asgi_sqla.engine.sqlite import is_inside
from asgi_sqla.errors import AsgiSqlaError, ConfigurationError
from asgi_sqla.session.transient import is_transient

M = TypeVar("M")
Filters: TypeAlias = Mapping[str, Any]


class NotFoundError(AsgiSqlaError, NoResultFound, LookupError):
    """``get_or_404`` or ``first_or_404`` found no row.

    Map it to a response with ``error_responses={NotFoundError: 404}``, or with an exception handler of the framework.

    - ``model``: the mapped class.
    - ``filters``: a mapping of the attributes that were looked up.
    """

    status_code = 404
    """The HTTP status for it; some frameworks read it too."""

    def __init__(self, message: str, model: type[Any], filters: Filters) -> None:
        super().__init__(message)
        self.model = model
        self.filters = filters

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.model, self.filters)


def described(model: type[Any], filters: Filters) -> str:
    """Return ``model`` and ``filters`` for an error message."""
    wanted = ", ".join(f"{name}={value!r}" for name, value in filters.items())
    return f"{model.__name__} with {wanted}" if wanted else model.__name__


def mapper_of(model: type[Any]) -> Mapper[Any]:
    """Return the mapper of ``model``; raise ConfigurationError for what is not a mapped class."""
    mapper = inspect(model, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise ConfigurationError(f"model={model!r} is not a mapped class; pass a model class, such as User")
    return mapper


def _query(model: type[M], filters: Filters) -> Any:
    known = mapper_of(model).all_orm_descriptors
    for name in filters:
        if name not in known:
            raise _unknown(model, filters, name)
    return select(model).filter_by(**filters)


def _check_values(model: type[Any], values: Filters) -> None:
    """Raise for what cannot be set; that may be more than filters allow, such as a property."""
    for name in values:
        if not hasattr(model, name):
            raise _unknown(model, values, name)


def _unknown(model: type[Any], values: Filters, name: str) -> ConfigurationError:
    known = ", ".join(sorted(mapper_of(model).all_orm_descriptors.keys()))
    return ConfigurationError(f"{described(model, values)}: {model.__name__} has no attribute {name!r}; it has {known}")


def by_pk(session: Session, model: type[M], pk: Any) -> M | None:
    """Return the row with this primary key, from the identity map if it is there, or None."""
    mapper_of(model)
    return session.get(model, pk)


def by_pk_or_404(session: Session, model: type[M], pk: Any) -> M:
    """Return the row with this primary key, or raise NotFoundError."""
    found = by_pk(session, model, pk)
    if found is None:
        keys = [mapper_of(model).get_property_by_column(column).key for column in mapper_of(model).primary_key]
        values = pk if isinstance(pk, tuple | list) else pk.values() if isinstance(pk, Mapping) else [pk]
        filters = dict(zip(keys, values, strict=False))
        raise NotFoundError(f"there is no {described(model, filters)}", model, filters)
    return found


def one_or_none(session: Session, model: type[M], filters: Filters) -> M | None:
    """Return the only row, or None."""
    return _only(_rows(session, _query(model, filters)), model, filters)


def one(session: Session, model: type[M], filters: Filters) -> M:
    """Return the only row, or raise NoResultFound."""
    found = one_or_none(session, model, filters)
    if found is None:
        raise NoResultFound(f"there is no {described(model, filters)}")
    return found


def first_or_none(session: Session, model: type[M], filters: Filters) -> M | None:
    """Return the row with the lowest primary key, or None."""
    query = _query(model, filters).order_by(*mapper_of(model).primary_key).limit(1)
    found: M | None = session.scalars(query).unique().first()
    return found


def first_or_404(session: Session, model: type[M], filters: Filters) -> M:
    """Return the row with the lowest primary key, or raise NotFoundError."""
    found = first_or_none(session, model, filters)
    if found is None:
        raise NotFoundError(f"there is no {described(model, filters)}", model, filters)
    return found


def get_or_create(session: Session, model: type[M], filters: Filters) -> tuple[M, bool]:
    """Return the only row, created from ``filters`` if there was none, and whether it was created."""
    return _find_or_make(session, model, filters, filters)


def update_or_create(
    session: Session, model: type[M], filters: Filters, defaults: Filters | None, create_defaults: Filters | None
) -> tuple[M, bool]:
    """Update the only row with ``defaults``, or create it with ``create_defaults``."""
    defaults = defaults or {}
    made_with = defaults if create_defaults is None else create_defaults
    for values in (defaults, made_with):
        _check_values(model, values)
    row, made = _find_or_make(session, model, filters, {**filters, **made_with})
    if not made:
        for name, value in defaults.items():
            setattr(row, name, value)
        session.flush()
    return row, made


def _find_or_make(session: Session, model: type[M], filters: Filters, values: Filters) -> tuple[M, bool]:
    untouched = not session.in_transaction()
    found = one_or_none(session, model, filters)
    if found is not None:
        return found, False
    try:
        return _make(session, model, filters, values)
    except OperationalError as exc:
        if not (untouched and is_transient(exc) and _restarted_to_write(session, model)):
            raise
    found = one_or_none(session, model, filters)
    return (found, False) if found is not None else _make(session, model, filters, values)


def _make(session: Session, model: type[M], filters: Filters, values: Filters) -> tuple[M, bool]:
    """Insert the row, or return the one that another session has inserted meanwhile."""
    savepoint = session.begin_nested()  # flushes pending objects first; an error of theirs is not a lost race
    try:
        with savepoint:
            made = model(**values)
            session.add(made)
    except IntegrityError:
        found = _found_after_race(session, model, filters)
        if found is None:  # no other session created it: the values are wrong for another reason
            raise
        return found, False
    return made, True


def _found_after_race(session: Session, model: type[M], filters: Filters) -> M | None:
    query = _query(model, filters)
    if session.get_bind(mapper_of(model)).dialect.name in ("mysql", "mariadb"):
        # Its snapshot is older than the other session's row; only a locking read sees the row.
        query = query.with_for_update(read=True)
    return _only(_rows(session, query), model, filters)


def _rows(session: Session, query: Any) -> list[Any]:
    return list(session.scalars(query.limit(2)).unique())


def _only(rows: list[Any], model: type[M], filters: Filters) -> M | None:
    if len(rows) > 1:
        raise MultipleResultsFound(f"there is more than one {described(model, filters)}")
    return rows[0] if rows else None


def _restarted_to_write(session: Session, model: type[Any]) -> bool:
    """On SQLite, restart the transaction as one that may write; return whether that was done.

    After a read a transaction cannot write if another session has written: SQLite answers "database is locked" at once.
    A transaction that has written holds the lock, and never gets this answer. So this one has only read, but for
    temporary tables, which have no lock; where there is one, nothing is restarted.
    """
    bind = session.get_bind(mapper_of(model))
    # A Connection has its owner's transaction; a savepoint, or an engine inside rolled_back(), is in another one.
    if bind.dialect.name != "sqlite" or not isinstance(bind, Engine) or is_inside(bind.dialect):
        return False
    connection = session.connection({"mapper": mapper_of(model)})
    if connection.in_nested_transaction():
        return False
    # Without SQLAlchemy's events, whose listeners would take the transaction for lost.
    cursor = connection.connection.cursor()
    try:
        cursor.execute("SELECT count(*) FROM sqlite_temp_master")
        if cursor.fetchone() != (0,):
            return False
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN IMMEDIATE")
    except Exception as exc:
        raise OperationalError("BEGIN IMMEDIATE", None, exc) from exc
    finally:
        cursor.close()
    return True
