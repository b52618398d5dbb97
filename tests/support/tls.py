"""TLS before the PostgreSQL of the tests, which was built without it: the driver checks a real certificate."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import URL, make_url

SSL_REQUEST = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")
"""The first message of a client that wants TLS."""


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 that signs itself, and its key; return both paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    written, private = folder / "server.crt", folder / "server.key"
    written.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return written, private


@contextmanager
def tls(url: str, folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Put TLS before the server of ``url``; yield its own URL, its certificate, and the ciphers of its connections."""
    written, private = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(written, private)
    parsed = make_url(url)
    listening = socket.create_server(("127.0.0.1", 0))
    ciphers: list[str] = []
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                driver, _ = listening.accept()
            except OSError:  # the test is over
                return
            threads.append(threading.Thread(target=serve, args=(driver,)))
            threads[-1].start()

    def serve(driver: socket.socket) -> None:
        assert driver.recv(8, socket.MSG_WAITALL) == SSL_REQUEST
        driver.sendall(b"S")
        with suppress(OSError), context.wrap_socket(driver, server_side=True) as secure, _connected(parsed) as server:
            ciphers.append(str(secure.cipher()))
            back = threading.Thread(target=copy, args=(server, secure))
            back.start()
            copy(secure, server)
            back.join()

    thread = threading.Thread(target=accept)
    thread.start()
    query = {key: value for key, value in parsed.query.items() if key != "host"}
    through = parsed.set(host="127.0.0.1", port=listening.getsockname()[1], query=query)
    try:
        yield through.render_as_string(hide_password=False), written, ciphers
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()
        for one in threads:
            one.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes until ``source`` ends."""
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _connected(url: URL) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.connect(f"{url.query['host']}/.s.PGSQL.{url.port or 5432}")
    return server
