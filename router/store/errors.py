"""What can go wrong with the registry: it fails (`StoreError`), or it refuses (`Refusal`).

Messages name settings, never paths, addresses or values, so that they may be shown and logged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError

FILE: Final = "the registry's file (SQLITE_DB_PATH; by default models.db in IIR_HOME)"


class StoreError(Exception):
    """The registry, or a file beside it, can't be used; the message says what has to change, if anything."""


class NoRegistry(StoreError):
    """There is no registry yet, or not all of its tables."""


class DamagedRegistry(StoreError):
    """The file is damaged, or is something else than a registry. It is left as it is."""


class NewerRegistry(StoreError):
    """A newer version of the program has migrated the registry."""


class SecretFileUnusable(StoreError):
    """A file for a key or a credential can't be read or written, or holds something else.

    A later try fails as well, until somebody has changed that.
    """


class Refusal(Exception):
    """The registry works, but what was asked for is not valid or contradicts it."""


class InvalidValue(Refusal):
    """A name, URL or other value has a form that is not taken."""


class NameTaken(Refusal):
    """The name belongs to something else already."""


class UnknownName(Refusal):
    """Nothing has this name."""


class CredentialRefused(Refusal):
    """The credential is revoked, or belongs to another agent."""


class TokenRefused(Refusal):
    """A join token is unknown, used or expired."""


class Superseded(Refusal):
    """A newer incarnation of the agent has registered."""


class TooLate(Refusal):
    """A newer message of the same incarnation was kept."""


def not_migrated() -> NoRegistry:
    """Return the error for a registry that was not made yet or lacks tables."""
    return NoRegistry(
        "the registry is not there yet or is older than this program; run `iir migrate`"
    )


def damaged() -> DamagedRegistry:
    """Return the error for a file that is no intact database."""
    return DamagedRegistry(
        f"{FILE} is damaged or no SQLite database; it was left as it is. Move it aside or put a "
        "backup in its place, then run `iir migrate`"
    )


@contextmanager
def translated() -> Iterator[None]:
    """Turn whatever a database driver or the file system raises into a `StoreError`."""
    try:
        yield
    except NoSuchModuleError:
        raise StoreError(
            "DATABASE_URL names a database that is not known; use sqlite:///…"
        ) from None
    except ModuleNotFoundError as error:
        raise StoreError(f"DATABASE_URL needs the driver {error.name}, not installed") from None
    except DBAPIError as error:
        raise _explained(error.orig) from error
    except sqlite3.Error as error:
        raise _explained(error) from error
    except SQLAlchemyError as error:
        raise StoreError(f"the registry failed ({type(error).__name__})") from error
    except OSError as error:
        # The text of an OSError holds the path; its cause alone does not.
        raise StoreError(f"{FILE} can't be used: {error.strerror or 'I/O error'}") from None


def _explained(cause: BaseException | None) -> StoreError:
    text = str(cause) if isinstance(cause, sqlite3.Error) else ""
    if "not a database" in text or "malformed" in text:
        return damaged()
    if "no such table" in text or "no such column" in text:
        return not_migrated()
    if "locked" in text:
        return StoreError("the registry is locked by another process; try again")
    if text:
        return StoreError(f"{FILE} can't be used: {text}")
    return StoreError(f"the registry failed ({type(cause).__name__})")
