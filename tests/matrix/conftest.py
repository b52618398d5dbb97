"""The hooks of the matrix; fixtures are beside the tests that use them."""

from __future__ import annotations

import pytest

from matrix.drivers import DriversPlugin
from matrix.report import print_matrix


def pytest_configure(config: pytest.Config) -> None:
    """Let the core suite fill its table, and print the matrix at the end of the run."""
    config.pluginmanager.register(DriversPlugin(), "drivers")
    print_matrix(config)
