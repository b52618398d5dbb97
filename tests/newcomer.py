"""A newcomer's path, from an environment with nothing but the wheel and its extras: ``nox -s newcomer``.

The README's first program is served and asked as the README does; then it gets migrations, and a test.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

FIRST = ".. code-block:: python\n\n"
TABLES = "Base.metadata.create_all(db.engine)\n"
TEST = """
import pytest
from fastapi.testclient import TestClient
from shop import app


@pytest.mark.asgi_sqla(mode="copy")
@pytest.mark.parametrize("time", range(2))
def test_orders(rolled_back_database, time):
    with TestClient(app) as client:
        assert client.post("/orders", params={"item": "mint"}).status_code == 201
        assert client.get("/orders").json() == ["mint"]
"""
INI = "[pytest]\nasgi_sqla_database = shop:db\n"


def first_program(readme: str) -> str:
    """Return the first block of Python."""
    _, _, after = readme.partition(FIRST)
    lines = []
    for line in after.splitlines():
        if line and not line.startswith("    "):
            break
        lines.append(line[4:])
    return "\n".join(lines).strip() + "\n"


def ask(url: str, method: str = "GET") -> str:
    """Return the body of an answer, whatever its status."""
    try:
        with urlopen(Request(url, method=method), timeout=10) as answer:  # a server of ours
            return str(answer.read().decode())
    except HTTPError as exc:
        return exc.read().decode()


def run(*arguments: str) -> str:
    """Run a program of this environment, and return what it prints; stop if it fails."""
    command = [str(Path(sys.executable).with_name(arguments[0])), *arguments[1:]]
    print("$", *arguments, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, flush=True)
    if done.returncode:
        sys.exit(f"{arguments[0]} ended with {done.returncode}")
    return done.stdout


def served() -> list[str]:
    """Serve the program, and return what the README's three commands print."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("fastapi")), "run", "shop.py", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        orders = f"http://127.0.0.1:{port}/orders"
        return [ask(f"{orders}?item=tea", "POST"), ask(f"{orders}?item=tea", "POST"), ask(orders)]
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Walk the path."""
    readme = Path("README.rst").read_text()
    program = first_program(readme)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("shop.py").write_text(program)
        answers = served()
        print(*answers, sep="\n", flush=True)
        assert answers == ['{"ordered":"tea"}', "Internal Server Error", '["tea"]'], answers
        assert all(answer in readme for answer in answers)

        assert TABLES in program
        Path("shop.py").write_text(program.replace("sqlite://", "sqlite:///shop.db").replace(TABLES, ""))
        os.environ["ASGI_SQLA_TARGET"] = "shop:db"
        run("asgi-sqla", "--metadata", "shop:Base", "init")
        run("asgi-sqla", "--metadata", "shop:Base", "revision", "--autogenerate", "-m", "first")
        assert run("asgi-sqla", "--metadata", "shop:Base", "migrate") == "Database created.\n"
        assert "up to date" in run("asgi-sqla", "--metadata", "shop:Base", "status")

        Path("test_shop.py").write_text(TEST)
        Path("pytest.ini").write_text(INI)
        assert "2 passed" in run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider")


if __name__ == "__main__":
    main()
