"""The matrix: every framework, server, driver and worker people use, each for real."""
