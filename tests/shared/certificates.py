"""Certificates for tests of TLS, made by openssl's command line."""

from __future__ import annotations

import ssl
import subprocess
from http.server import HTTPServer
from pathlib import Path
from shutil import which

import pytest


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate of its own authority, for `localhost` only, and its key; skip without openssl."""
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    cert, key = folder / "cert.pem", folder / "key.pem"
    options = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"]
    options += [
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    made = subprocess.run([openssl, *options], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this openssl can't make the certificate")
    return cert, key


def speak_tls(server: HTTPServer, certificate: tuple[Path, Path]) -> None:
    """Let a server of the standard library speak TLS, before it serves."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    # not in the handshake of `accept`: that would be the thread that everybody waits for
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
