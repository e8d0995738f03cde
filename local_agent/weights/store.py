"""Where pulled weights lie: `<root>/<folder of the model>/<file>` and a `weights.json` beside it.

Weights count as pulled when the manifest is there and the file has the size that it records. Whole
repositories lie in `<root>/.hub`, for all models that share them. Of a model that runs in a container there
is only a `container.json`: its weights lie in the container engine's volume, which is not asked on the way
of requests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from local_agent.domain import ModelId, PulledImage
from local_agent.weights.errors import AlreadyPulling, SourceInvalid
from local_agent.weights.files import disk_errors, locked
from local_agent.weights.hub_cache import HubCache
from local_agent.weights.source import plain_name
from shared.kit.whole_file import write_whole

_MANIFEST = "weights.json"
_CONTAINER = "container.json"
_LOCKS = ".locks"
_SAFE = re.compile(r"[a-z0-9_][a-z0-9._-]{0,99}")


class Manifest(BaseModel):
    """What is known of pulled weights; `source` is the text that they were pulled by.

    `is_checked`: whether there was a checksum to compare with; None where it was not noted.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    source: str
    file: str
    sha256: str | None = None
    size_bytes: int = Field(ge=0)
    is_checked: bool | None = None
    pulled_at: str


class ContainerManifest(BaseModel):
    """What was pulled for a model in a container: the image, and the repository into its volume."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    image: str
    repo: str
    size_bytes: int = Field(ge=0)
    pulled_at: str


class WeightStore:
    """The weights on this host, one folder per model. Holds nothing in memory."""

    def __init__(self, root: Path) -> None:
        """Look below `root`, usually `$IIR_HOME/models`; it need not exist."""
        self._root = root
        self.hub = HubCache(root / ".hub")

    def folder(self, model: ModelId) -> Path:
        """Return the model's folder; two ids never share one, on any file system."""
        return self._root / folder_name(model)

    def find(self, model: ModelId, refs: Collection[str] = ()) -> Path | None:
        """Return the weights' file, or None while they are not (wholly) pulled.

        Args:
            model: id of the model.
            refs: sources to accept; weights that were pulled from another one do not count.
                Empty: any.
        """
        manifest = self.manifest(model)
        if manifest is None or (refs and manifest.source not in refs):
            return None
        path = self.folder(model) / manifest.file
        try:
            is_whole = path.stat().st_size == manifest.size_bytes
        except OSError:
            return None
        return path if is_whole else None

    def manifest(self, model: ModelId) -> Manifest | None:
        """Return what was recorded of the model's weights, if it can be read and is the model's."""
        try:
            text = (self.folder(model) / _MANIFEST).read_text(encoding="utf-8")
            manifest = Manifest.model_validate_json(text)
            plain_name(manifest.file)
        except (OSError, UnicodeDecodeError, ValidationError, SourceInvalid):
            return None
        return manifest if manifest.model == model else None

    def record(self, manifest: Manifest) -> None:
        """Write the manifest: from now on the weights count as pulled."""
        path = self.folder(ModelId(manifest.model)) / _MANIFEST
        write_whole(path, json.dumps(manifest.model_dump(), indent=2) + "\n")

    def pulled(self, model: ModelId) -> PulledImage | None:
        """Return what was pulled for the model's container, if anything."""
        found = _container_manifest(self.folder(model) / _CONTAINER)
        if found is None or found.model != model:
            return None
        return PulledImage(image=found.image, repo=found.repo, size_bytes=found.size_bytes)

    def record_pulled(self, model: ModelId, pulled: PulledImage, pulled_at: str) -> None:
        """Note what was pulled for the model's container: from now on it counts as pulled."""
        folder = self.folder(model)
        folder.mkdir(parents=True, exist_ok=True)
        values = {"model": model, **asdict(pulled), "pulled_at": pulled_at}
        write_whole(folder / _CONTAINER, json.dumps(values, indent=2) + "\n")

    def forget_repo(self, repo: str) -> None:
        """Note that a repository is in the volume no more: for none of the models that share it."""
        for path in self._root.glob(f"*/{_CONTAINER}"):
            found = _container_manifest(path)
            if found is not None and found.repo == repo:
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()  # leaves a folder in which there is something

    def remove(self, model: ModelId) -> bool:
        """Remove the model's weights and whatever is left of broken pulls.

        A local file that was used where it is stays; only the link to it goes.

        Returns:
            False if there was nothing.

        Raises:
            AlreadyPulling: a pull of it is running.
            WriteFailed: the disk refused.
        """
        folder = self.folder(model)
        if not folder.is_dir():
            return False
        with disk_errors(), locked(self.lock_path(model), model):
            # The manifest first: a crash in between must not leave a manifest without its file.
            (folder / _MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        return True

    def is_being_changed(self, model: ModelId) -> bool:
        """Tell whether some process pulls or removes this model now; so it is where nobody can tell."""
        path = self.lock_path(model)
        try:
            if path.exists():
                with locked(path, model):
                    return False
        except (AlreadyPulling, OSError):
            return True
        return False

    def lock_path(self, model: ModelId) -> Path:
        """Return the lock that a pull or a removal of this model holds."""
        return self._root / _LOCKS / f"{folder_name(model)}.lock"


def _container_manifest(path: Path) -> ContainerManifest | None:
    try:
        return ContainerManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None


def folder_name(model: ModelId) -> str:
    """Return a file system's name for a model id.

    Ids of small letters, digits, `._-` are their own name; others (slashes, capitals, which some
    file systems do not tell apart) get a hash.
    """
    if _SAFE.fullmatch(model):
        return model
    readable = re.sub(r"[^a-z0-9_-]+", "-", model.lower()).strip("-")[:80] or "model"
    return f"{readable}~{hashlib.sha256(model.encode()).hexdigest()[:8]}"
