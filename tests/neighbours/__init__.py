"""Tests that need the libraries of the dependency group ``matrix``: only the nox session of that name runs them."""
