"""Units of work: what one request, message or job does, and the only wing that ends sessions.

May know: ``session``, ``engine`` and ``errors``.
"""
