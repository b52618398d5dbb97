"""``asgi-sqla`` and ``python -m asgi_sqla``: the command line, or the sentence that says how to install it.

Holds: what happens without the extra.
Must not know: the commands.
"""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from asgi_sqla.cli import main as command
    except ModuleNotFoundError as exc:
        sys.exit(f"Error: {exc}")
    command(prog_name="asgi-sqla")


if __name__ == "__main__":
    main()
