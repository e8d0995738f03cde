"""What a router makes for itself at its start where nobody is to type: a first key, an agent's credential.

The file is written before the registry's transaction is committed: should that fail, the next start
takes up what the file holds. What was revoked stays revoked.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from router.domain import Scope
from router.store.agents import ensure_agent
from router.store.keys import create_key, make_key, was_ever_keyed
from router.store.secret_file import read_secret, write_secret
from router.store.writer import RegistryWriter

FIRST_KEY = "first"
LOCAL_AGENT = "local"


class FirstSecrets:
    """Makes them, each in one transaction: of several routers that start at once, one does."""

    def __init__(self, url: str) -> None:
        """Open nothing yet; `url` is the registry's."""
        self._writer = RegistryWriter(url)

    def close(self) -> None:
        """Close the registry."""
        self._writer.close()

    def make_key(self, path: Path) -> bool:
        """Make a key and keep it in the file, if there never was one; tell whether that was so.

        Args:
            path: of the file; one that holds a key already is taken up.

        Raises:
            StoreError: the registry or the file can't be used.
        """

        def write(connection: Connection) -> bool:
            if was_ever_keyed(connection):
                return False
            key = _kept(path, "key file (ROUTER_KEY_FILE)")
            create_key(connection, FIRST_KEY, {Scope.INFERENCE}, key=key)
            return True

        return self._writer.run_sync(write)

    def admit_local_agent(self, path: Path) -> None:
        """Let the agent in that shares the file; doing it again changes nothing.

        Args:
            path: of the file with its credential, which is made if it is not there.

        Raises:
            StoreError: the registry or the file can't be used.
            CredentialRefused: the credential was revoked.
        """

        def write(connection: Connection) -> None:
            credential = _kept(path, "token file (ROUTER_AGENT_TOKEN_FILE)")
            ensure_agent(connection, LOCAL_AGENT, credential)

        self._writer.run_sync(write)


def _kept(path: Path, what: str) -> str:
    secret = read_secret(path, what)
    if secret is None:
        secret = make_key()[0]
        write_secret(path, secret, what)
    return secret
