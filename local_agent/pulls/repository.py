"""Pulls whole repositories of the hub for processes of this host, by a process of its own.

A process, as in a container, so that a hub's answers are read outside of the agent and hashing gigabytes
does not slow its requests down.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import ssl
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.to_thread
import certifi

from local_agent.weights.errors import SourceFailed
from local_agent.weights.files import DISK_FULL, TOO_LARGE, disk_errors, locked
from local_agent.weights.following import PROGRAM, Disk, Follower, Result
from local_agent.weights.hub_cache import HubCache
from local_agent.weights.progress import Meter, OnProgress, Phase, reported
from shared.kit.clock import Clock, monotonic

# isolated: neither PYTHONPATH, nor the user's packages, nor those of the environment
_FLAGS = ("-I", "-S")
_INHERITED = re.compile(
    r"PATH|LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)"
    r"|(HTTPS?|NO)_PROXY|(https?|no)_proxy"
)
_READ_BYTES = 64 * 1024
_END_S = 10.0
_DISK = Disk(small=TOO_LARGE, full=DISK_FULL)


class RepositoryPuller:
    """Pulls into a cache of the agent's own, and removes from it. Holds no state between pulls."""

    def __init__(
        self,
        cache: HubCache,
        *,
        users: HubCache | None,
        env: Mapping[str, str],
        secrets: Mapping[str, str],
        python: str = sys.executable,
        clock: Clock = monotonic,
        stall_s: float = 300.0,
        report_every_s: float = 0.25,
    ) -> None:
        """Take what is needed later.

        Args:
            cache: where the repositories go.
            users: the user's own cache, if there is one, which is read, and never written to.
            env: the agent's environment; the program gets little of it.
            secrets: the hub's token and address, for the program's environment and nothing else.
            python: the interpreter. The agent's own: it is always there, and of a version that is tested.
            clock: monotonic, for rates.
            stall_s: a pull that gets no byte for so long has failed; there is no other limit.
            report_every_s: seconds between two reports of progress.
        """
        self._cache = cache
        self._users = users
        inherited = {name: value for name, value in env.items() if _INHERITED.fullmatch(name)}
        self._env = {**_trust(inherited), **inherited}
        self._secrets = dict(secrets)
        self._python = python
        self._clock = clock
        self._stall_s = stall_s
        self._report_every_s = report_every_s

    async def pull(self, repo: str, on_progress: OnProgress) -> Result:
        """Make the repository's newest files be there; what is there already is not pulled again.

        Cancel the task to stop; the next pull goes on with what has come.

        Args:
            repo: its name, ORG/NAME.
            on_progress: called about four times a second, in the event loop.

        Raises:
            PullError: by cause.
        """
        meter = Meter(self._clock)
        meter.name_source(f"hf:{repo}")
        with disk_errors(), locked(self._cache.lock_path(repo), repo) as lock:
            if self._users is not None:
                self._cache.adopt(repo, self._users)
            async with reported(meter, on_progress, self._report_every_s):
                size, is_checked = await self._run(repo, meter, lock)
                meter.begin(Phase.DONE, total=size, done=size)
        return size, is_checked

    async def remove(self, repo: str) -> int:
        """Remove the repository, broken pulls included; return how many bytes were there.

        Raises:
            PullError: by cause.
        """
        if not self._cache.folder(repo).exists():
            return 0
        with disk_errors(), locked(self._cache.lock_path(repo), repo):
            return await anyio.to_thread.run_sync(self._cache.remove, repo)

    async def _run(self, repo: str, meter: Meter, lock: int) -> Result:
        """Run the program to its end, and return what it tells."""
        follower = Follower(repo, meter, _DISK, self._stall_s)
        async with self._program(repo, lock) as program:
            found = await follower.result(lambda: _read(program))
            if found is not None:
                return found
            code = await program.wait()
        why = follower.tail or "no reason"
        raise SourceFailed(f"the program that pulls has failed (exit {code}): {why}")

    @asynccontextmanager
    async def _program(self, repo: str, lock: int) -> AsyncIterator[asyncio.subprocess.Process]:
        """Enter with the program in a process group of its own; afterwards that is gone.

        It inherits the lock: where the agent was killed, nobody else pulls until the program has noticed.
        """
        own = {"IIR_TASK": "pull", "IIR_REPO": repo, "HF_HUB_CACHE": str(self._cache.root)}
        process = await asyncio.create_subprocess_exec(
            *(self._python, *_FLAGS, str(PROGRAM)),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env={**self._env, **self._secrets, **own},
            start_new_session=True,
            pass_fds=(lock,),
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                # nothing of what it wrote is lost by that
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                with anyio.move_on_after(_END_S, shield=True):
                    await process.wait()


def _trust(env: Mapping[str, str]) -> dict[str, str]:
    """Return what lets the program know the authorities: Python as python.org makes it for macOS has none."""
    if not {"SSL_CERT_FILE", "SSL_CERT_DIR"}.isdisjoint(env):
        return {}
    known = ssl.get_default_verify_paths()
    return {} if known.cafile or known.capath else {"SSL_CERT_FILE": certifi.where()}


async def _read(process: asyncio.subprocess.Process) -> bytes | None:
    """Return what it has written since; None at its end."""
    return await process.stdout.read(_READ_BYTES) or None if process.stdout is not None else None
