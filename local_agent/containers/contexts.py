"""Docker's contexts as `docker context ls` prints them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_URL = re.compile(r"\b(?:unix|tcp|ssh|npipe|https?)://\S+")


@dataclass(frozen=True, slots=True)
class DockerContext:
    """A context: where `docker` looks for its engine; `url` is empty where none is listed."""

    name: str
    url: str
    is_current: bool


def parse_contexts(text: str) -> tuple[DockerContext, ...]:
    """Return the contexts; what is no such table has none.

    The columns differ between releases, so the first address of a line counts: in older tables one of
    Kubernetes may follow.
    """
    lines = text.splitlines()
    if not lines or not lines[0].startswith("NAME"):
        return ()
    found = []
    for line in lines[1:]:
        words = line.split()
        if not words:
            continue
        url = _URL.search(line)
        is_current = len(words) > 1 and words[1] == "*"
        found.append(DockerContext(words[0], "" if url is None else url[0], is_current))
    return tuple(found)
