"""``python -m asgi_sqla.cli`` is the same as ``asgi-sqla``."""

from asgi_sqla.cli.program import main

if __name__ == "__main__":
    main(prog_name="asgi-sqla")
