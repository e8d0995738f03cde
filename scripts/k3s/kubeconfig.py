"""Our own kubeconfig: one file, one context, readable by its owner only."""

from __future__ import annotations

import os

from scripts.devstack.text import say
from scripts.k3s.tools import Tools


def write_kubeconfig(tools: Tools, text: str) -> None:
    """Replace it in one step; it holds a key to the cluster."""
    path = tools.kubeconfig
    if tools.is_dry:
        say(f"would write: {path}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    draft.replace(path)
