"""ASGI applications that say how the databases are, to mount into yours.

- ``ready``: for what watches an application: whether the databases answer and have their revisions.
- ``live``: a page for development, of the pools, of what runs and of what ended.
"""

from asgi_sqla.health.live import live
from asgi_sqla.health.ready import ready

__all__ = ["live", "ready"]
