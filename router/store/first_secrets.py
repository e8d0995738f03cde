"""What a router makes for itself at its start where nobody is to type: a first key, an agent's credential.

The file comes first and the registry then: should that fail, the next start takes up what the file
holds. What was revoked stays revoked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from router.domain import Scope
from router.store.agents import ensure_agent
from router.store.keys import create_key, make_key, was_ever_keyed
from router.store.secret_file import read_secret, write_secret
from router.store.writer import RegistryWriter

T = TypeVar("T")

FIRST_KEY = "first"
LOCAL_AGENT = "local"


def make_first_key(url: str, path: Path) -> bool:
    """Make a key and keep it in the file, if there never was one; tell whether that was so.

    Args:
        url: of the registry.
        path: of the file; one that holds a key already is taken up.

    Raises:
        StoreError: the registry or the file can't be used.
    """
    if _write(url, was_ever_keyed):
        return False
    key = _kept(path, "key file (ROUTER_KEY_FILE)")
    _write(url, lambda c: create_key(c, FIRST_KEY, {Scope.INFERENCE}, key=key))
    return True


def admit_local_agent(url: str, path: Path) -> None:
    """Let the agent in that shares the file; doing it again changes nothing.

    Args:
        url: of the registry.
        path: of the file with its credential, which is made if it is not there.

    Raises:
        StoreError: the registry or the file can't be used.
        CredentialRefused: the credential was revoked.
    """
    credential = _kept(path, "token file (ROUTER_AGENT_TOKEN_FILE)")
    _write(url, lambda c: ensure_agent(c, LOCAL_AGENT, credential))


def _kept(path: Path, what: str) -> str:
    secret = read_secret(path, what)
    if secret is None:
        secret = make_key()[0]
        write_secret(path, secret, what)
    return secret


def _write(url: str, change: Callable[[Connection], T]) -> T:
    writer = RegistryWriter(url)
    try:
        return writer.run_sync(change)
    finally:
        writer.close()
