"""Sessions: guarded against a second user, and each with one record of what is known of its transaction.

May know: ``engine`` and ``errors``.
"""
