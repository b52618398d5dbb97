"""The database and its migrations. Imports the settings and the models."""

from __future__ import annotations

from asgi_sqla.settings import database_from, migrations_from
from shop.models import Base
from shop.settings import settings

db = database_from(settings.database)
migrations = migrations_from(settings.database, database=db, metadata=Base)
