"""What errors, logs and pages may show of a value: never a password, and never more than a line.

Holds: the patterns of what may be secret. Pure functions.
Must not know: where a value comes from, or where it is shown.
"""

from __future__ import annotations

import re

from sqlalchemy.engine import URL

_SECRET = "(?i:odbc_connect|pass(?!file)|pwd|secret|token)"  # noqa: S105  # a pattern
_USER = r"://[^/\s]*:"


def shown(url: URL) -> str:
    """Return ``url`` as errors and logs may show it: without its passwords, also those in its query."""
    hidden = {key: "..." for key in url.query if re.search(_SECRET, key)}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def hidden(value: object) -> str:
    """Return the ``repr`` of any value, or only its type if it may contain a password, such as a URL."""
    if isinstance(value, URL):
        return shown(value)
    text = repr(value)
    package = type(value).__module__.partition(".")[0]
    safe = package == "asgi_sqla" or (
        package == "sqlalchemy" and not re.search(_SECRET, text)
    )  # SQLAlchemy's repr shows the query
    if not safe and ("@" in text or re.search(_USER, text) or re.search(_SECRET, text)):
        return f"a {type(value).__name__} (not shown, as it may hold a password)"
    return text


def printable(text: str) -> str:
    """Return a client's ``text`` on one line, so that a path cannot forge a line of the log."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
