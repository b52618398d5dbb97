"""Units of work: what one request, message or job does, and the only place where sessions are ended.

May know: ``session``, ``engine`` and ``errors``.
"""
