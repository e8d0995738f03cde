"""Certificates for tests of TLS, made by openssl's command line."""

from __future__ import annotations

import subprocess
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
