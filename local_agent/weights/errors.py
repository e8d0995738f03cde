"""Why weights could not be pulled. Messages name the cause and the next step.

They never hold a token, an address of a package index or a path outside what the user named.
"""

from __future__ import annotations

from collections.abc import Sequence


class PullError(Exception):
    """A pull that did not end with usable weights."""


class SourceInvalid(PullError, ValueError):
    """The text does not name a source, or names one that is not allowed."""


class SourceNotFound(PullError):
    """The source does not have what was asked for."""


class AccessDenied(PullError):
    """The source wants a licence accepted or a token."""


class SourceUnreachable(PullError):
    """The source did not answer, or broke off more often than is worth waiting for."""


class SourceFailed(PullError):
    """The source answered with something that can't be used."""


class ChecksumMismatch(PullError):
    """The bytes are not the ones that were promised; they have been removed."""


class NotGguf(PullError):
    """Not a `.gguf` file, or one without GGUF's magic bytes."""


class NotEnoughSpace(PullError):
    """The disk has not enough room; nothing was downloaded."""


class WriteFailed(PullError):
    """The disk did not take the bytes."""


class AlreadyPulling(PullError):
    """Another process, or another task of this one, works on the same model's weights."""


class NoSource(PullError):
    """The model has no source to pull from."""


class AllSourcesFailed(PullError):
    """Every source was tried; `failures` says in order what became of each."""

    def __init__(self, model: str, failures: Sequence[tuple[str, PullError]]) -> None:
        """Join what each source answered into one message."""
        self.failures = tuple(failures)
        tried = "; ".join(f"{ref}: {error}" for ref, error in self.failures)
        super().__init__(f"no source of {model} worked: {tried}")
