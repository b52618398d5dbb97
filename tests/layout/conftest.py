"""Keeps pytest out of the project, whose tests need its own folder and settings: ``test_layout.py`` runs them."""

collect_ignore = ["project"]
