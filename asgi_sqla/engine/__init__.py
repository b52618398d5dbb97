"""Engines: made from one URL for both kinds of session, for each event loop, and disposed with the loop.

May know: ``errors``, and nothing else of this package.
"""
