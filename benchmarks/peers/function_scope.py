"""FastAPI's own way again, with ``scope="function"``: the dependency ends, and commits, before the answer."""

from __future__ import annotations

from functools import partial

from benchmarks.peers import depends

LIBRARIES = depends.LIBRARIES
make = partial(depends.make, scope="function")
