"""What a child process may know of the agent's environment."""

from __future__ import annotations

import re
from collections.abc import Mapping

MARKER = "IIR_WORKER"
"""Every process that a worker starts inherits it: it tells ours from a reused process id."""

_INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|XDG_CACHE_HOME|HF_HOME|VIRTUAL_ENV"
    r"|LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS"
    r"|PYTHON(PATH|HOME|UTF8|IOENCODING|DONTWRITEBYTECODE)"
)


def child_env(parent: Mapping[str, str], own: Mapping[str, str], marker: str) -> dict[str, str]:
    """Return the environment of an engine: a short list of the agent's, and the engine's own.

    The list allows and does not forbid: keys and tokens stay out without being known by name.

    Args:
        parent: the agent's environment.
        own: what the engine asks for; it wins.
        marker: names this worker, see `MARKER`.
    """
    inherited = {name: value for name, value in parent.items() if _INHERITED.fullmatch(name)}
    # setproctitle would overwrite the marker in the memory that the system shows as environment
    return {**inherited, "PYTHONUNBUFFERED": "1", "SPT_NOENV": "1", **own, MARKER: marker}
