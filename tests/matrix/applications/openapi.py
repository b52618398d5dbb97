"""The OpenAPI documents of the two Connexion applications."""

from __future__ import annotations

from typing import Any

WRITES = ("/async/write", "/sync/write")
OTHERS = tuple(f"/{kind}/{what}" for kind in ("async", "sync") for what in ("read", "stream", "background"))
METHODS = {"read": "get", "state": "get"}


def specification(module: str, *paths: str) -> dict[str, Any]:
    """Return a document in which ``/async/write`` is the operation ``write_async`` of ``module``."""
    operations = {}
    for path in paths:
        name = "_".join(reversed(path.strip("/").split("/")))
        method = METHODS.get(name.partition("_")[0], "post")
        operation = {"operationId": f"{module}.{name}", "responses": {"default": {"description": "any"}}}
        operations[path] = {method: operation}
    return {"openapi": "3.0.3", "info": {"title": "matrix", "version": "1"}, "paths": operations}
