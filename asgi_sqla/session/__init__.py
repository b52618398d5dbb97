"""Sessions: guarded against a second user, each with one record of its transaction.

May know: ``engine`` and ``errors``.
"""
