"""``python -m asgi_sqla.demo``: reads the arguments, and names missing packages before anything imports them."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

NEEDED = ("aiosqlite", "fastapi", "httpx", "uvicorn", "websockets")


def main() -> int:
    """Run the command; return its exit code."""
    arguments = _parser().parse_args()
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        sys.stderr.write(
            f"the tour needs {', '.join(missing)}; write: pip install 'asgi-sqla[demo]' (in a checkout: '.[demo]')\n"
        )
        return 2
    try:
        from asgi_sqla.demo.command import run  # only after the check that it can be imported

        return run(arguments.port, serve=arguments.serve)
    except KeyboardInterrupt:
        return 130


def port(text: str) -> int:
    """Return ``text`` as the number of a port."""
    number = int(text)
    if number not in range(2**16):
        raise argparse.ArgumentTypeError(f"{number} is not a port; write a number from 0 to 65535")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m asgi_sqla.demo",
        description="A tour of the promises of asgi_sqla: a real server, a real client, SQLite in a temporary file. "
        "The exit code is 0 when every promise was kept, and 1 when one was broken.",
    )
    parser.add_argument("--serve", action="store_true", help="keep the server up afterwards, until Ctrl-C")
    parser.add_argument("--port", type=port, default=0, help="the port to serve on; default: a free one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
