"""How far the pull of an image is, from what the container engine says of its layers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_THERE = frozenset({"Already exists"})
_DOWNLOADED = frozenset({"Verifying Checksum", "Download complete", "Extracting", "Pull complete"})


@dataclass(slots=True)
class _Layer:
    size: int | None = None
    downloaded: int = 0
    unpacked: int = 0


class Layers:
    """Sums up the layers of one pull; those that are on the host already count for nothing."""

    def __init__(self) -> None:
        self._layers: dict[str, _Layer] = {}

    def take(self, message: Mapping[str, Any]) -> None:
        """Take a message of the engine: `{"id", "status", "progressDetail": {"current", "total"}}`."""
        name, status = message.get("id"), message.get("status", "")
        if not isinstance(name, str) or status.startswith("Pulling from"):
            return
        if status in _THERE:
            self._layers.pop(name, None)
            return
        layer = self._layers.setdefault(name, _Layer())
        detail = message.get("progressDetail") or {}
        current, total = detail.get("current"), detail.get("total")
        if status == "Downloading" and isinstance(current, int):
            layer.downloaded = current
            layer.size = total if isinstance(total, int) and total > 0 else layer.size
        if status in _DOWNLOADED and layer.size is not None:
            layer.downloaded = layer.size
        if status == "Extracting" and isinstance(current, int):
            layer.unpacked = current
        if status == "Pull complete":
            layer.unpacked = layer.size or 0

    @property
    def total(self) -> int | None:
        """Return the bytes of all layers; None until all sizes are known."""
        sizes = [layer.size for layer in self._layers.values()]
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None

    @property
    def downloaded(self) -> int:
        """Return the bytes that were downloaded."""
        return sum(layer.downloaded for layer in self._layers.values())

    @property
    def unpacked(self) -> int:
        """Return the bytes of the downloaded layers that were unpacked."""
        return sum(layer.unpacked for layer in self._layers.values())

    @property
    def is_downloaded(self) -> bool:
        """Tell whether all is here and only has to be unpacked."""
        return self.total is not None and self.downloaded >= (self.total or 0)
