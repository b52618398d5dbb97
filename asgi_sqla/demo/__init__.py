"""A tour of the promises on a real server: ``python -m asgi_sqla.demo``. It needs the extra ``demo``.

``application`` is the shop that the tour visits, and an example to read first.
"""
