"""The matrix: the frameworks, servers, drivers and workers that people use, all of them real."""
