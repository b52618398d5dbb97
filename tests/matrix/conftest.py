"""The hooks of the matrix; fixtures live beside the tests that use them."""

from __future__ import annotations

import pytest

from matrix.report import MARK, MatrixPlugin


def pytest_configure(config: pytest.Config) -> None:
    """Print the matrix at the end of the run."""
    config.addinivalue_line("markers", MARK)
    config.pluginmanager.register(MatrixPlugin(), "matrix")
