"""Names for what goes wrong with containers. Pure: texts and numbers in, one line out."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from local_agent.catalog import pull_command
from local_agent.cleaning import cleaned
from local_agent.domain import ModelId
from local_agent.ports import ContainerSpec, ContainerView
from local_agent.process.log import cause_of

_GIB = 1024**3
_MOST_CHARS = 200
_NO_SPACE = re.compile(r"no space left|disk quota exceeded", re.IGNORECASE)
_PORT = re.compile(r"port is already allocated|address already in use", re.IGNORECASE)
_NO_IMAGE = re.compile(r"no such image|manifest unknown|image not known", re.IGNORECASE)
_NO_PYTHON = re.compile(r"python3.*not found", re.IGNORECASE)
_NO_GPU = re.compile(r"could not select device driver|nvidia", re.IGNORECASE)
_PULLS = (
    (
        re.compile(
            r"pull access denied|unauthorized|denied:|authentication required", re.IGNORECASE
        ),
        "the registry has no such image, or wants you to log in: docker login",
    ),
    (
        re.compile(r"manifest unknown|not found|no matching manifest", re.IGNORECASE),
        "the registry does not have it for this kind of machine; check the option image",
    ),
    (
        re.compile(r"toomanyrequests|rate limit", re.IGNORECASE),
        "the registry wants fewer pulls: log in (docker login), or try again later",
    ),
    (
        re.compile(
            r"dial tcp|no such host|connection re|i/o timeout|request canceled|deadline exceeded"
            r"|unexpected EOF|TLS handshake",
            re.IGNORECASE,
        ),
        "its registry can't be reached; check the network, and try again",
    ),
)
DISK_FULL = "the disk of the container engine is full; free some: docker system df"


def refusal(status: int, text: str, spec: ContainerSpec, port: int, model: str) -> str:
    """Say why an engine refused to start a container.

    Args:
        status: the HTTP status that it answered.
        text: what it said.
        spec: the container.
        port: the port on 127.0.0.1.
        model: whose container it is.
    """
    if _NO_SPACE.search(text):
        return DISK_FULL
    if _PORT.search(text):
        return f"port {port} was taken by another program meanwhile"
    if _NO_IMAGE.search(text):
        command = pull_command(ModelId(model))
        return f"the image {spec.image} is not on this host; pull it: {command}"
    if spec.has_gpus and _NO_GPU.search(text):
        return "the container engine offers no GPU; take the CPU image, or install NVIDIA's toolkit"
    return _refused(status, text)


def program_refusal(status: int, text: str, image: str) -> str:
    """Say why an engine refused to run the program that pulls weights.

    Args:
        status: the HTTP status that it answered.
        text: what it said.
        image: whose interpreter was to run it.
    """
    if _NO_SPACE.search(text):
        return DISK_FULL
    if _NO_PYTHON.search(text):
        return f"the image {image} has no python3, which pulls the weights; choose another image"
    return _refused(status, text)


def _refused(status: int, text: str) -> str:
    return f"the container engine refused ({status}): {cleaned(text)[:_MOST_CHARS]}"


def image_refusal(text: str, image: str) -> str:
    """Say why an engine could not pull an image.

    Args:
        text: what it said.
        image: its name.
    """
    if _NO_SPACE.search(text):
        return DISK_FULL
    for pattern, cause in _PULLS:
        if pattern.search(text):
            return f"the image {image} can't be pulled: {cause}"
    return f"the image {image} can't be pulled: {cleaned(text)[:_MOST_CHARS]}"


def exit_cause(view: ContainerView | None, spec: ContainerSpec, tail: Sequence[str]) -> str:
    """Say why a container ended; None stands for one that is gone."""
    if view is None:
        return "the container was removed by somebody else"
    if view.is_out_of_memory:
        limit = f" of {spec.memory_bytes / _GIB:g} GiB" if spec.memory_bytes else ""
        return f"out of memory: the container went over its limit{limit}; raise memory_gib, or use less"
    if view.exit_code and any(_NO_SPACE.search(line) for line in tail):
        return DISK_FULL
    return cause_of(exit_number(view.exit_code), tail)


def exit_number(code: int) -> int:
    """Return a shell's exit code as Python tells it: 137 is an end by SIGKILL, -9."""
    is_signal = code - 128 in {int(number) for number in signal.Signals}
    return 128 - code if is_signal else code
