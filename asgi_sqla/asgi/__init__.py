"""ASGI: what a request, a websocket or a lifespan means for its unit of work.

May know: ``unit``, ``session``, ``engine`` and ``errors``.
"""
