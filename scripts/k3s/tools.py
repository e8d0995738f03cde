"""Running the programs that do the work: read ones always, changing ones unless it is a dry run."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.devstack.text import Waiting, say
from scripts.k3s.errors import ConsentNeeded, ToolFailed, ToolMissing

_READ_S = 60.0
_TAIL = 20
_FOREIGN = ("HELM_KUBE", "HELM_NAMESPACE", "HELM_DRIVER", "KUBECONFIG", "K3S_", "INSTALL_K3S_")
"""Settings of kubectl and helm that lead elsewhere, and those that k3s's installer would take for its
own: it writes every K3S_… that it finds into the environment of the service."""
HOW_TO_GET = {
    "helm": "https://helm.sh/docs/intro/install (3.13 or newer, 4 as well)",
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "k3d": "https://k3d.io (5.6 or newer)",
    "docker": "https://docs.docker.com/get-docker",
}


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended."""

    code: int
    output: str
    error: str

    @property
    def reason(self) -> str:
        """Return why it failed: its last words, which with kubectl follow many that say less."""
        lines = [line for line in self.error.splitlines() if line.strip()] or [
            "it does not say why"
        ]
        return lines[-1].strip()

    @property
    def value(self) -> Any:
        """Return the JSON that it printed; None if it failed or that is none."""
        try:
            return json.loads(self.output) if self.code == 0 else None
        except ValueError:
            return None


class Tools:
    """The programs, with one kubeconfig of our own; nobody else's is read or written by them."""

    def __init__(
        self,
        kubeconfig: Path,
        environment: Mapping[str, str],
        *,
        is_dry: bool = False,
        says_yes: bool = False,
        answer: Callable[[str], str] | None = None,
    ) -> None:
        self.kubeconfig = kubeconfig
        self.is_dry = is_dry
        self.environment = {
            name: value for name, value in environment.items() if not name.startswith(_FOREIGN)
        }
        self._says_yes = says_yes
        self._answer = answer

    def kubectl(self, *arguments: str) -> list[str]:
        """Return a command line of kubectl for our cluster."""
        return ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]

    def helm(self, *arguments: str) -> list[str]:
        """Return a command line of helm for our cluster."""
        return ["helm", "--kubeconfig", str(self.kubeconfig), *arguments]

    def read(self, command: list[str]) -> Done:
        """Run what changes nothing, in a dry run too."""
        try:
            done = subprocess.run(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_READ_S,
                check=False,
            )
        except FileNotFoundError:
            raise missing(command[0]) from None
        except subprocess.TimeoutExpired:
            return Done(124, "", f"{command[0]} did not answer within {_READ_S:.0f} s")
        return Done(done.returncode, done.stdout, done.stderr)

    def act(self, what: str, command: list[str], *, stdin: str = "", hint: str = "") -> str:
        """Run what changes something and return what it printed; a dry run only says so.

        Args:
            what: the step, for the line that shows while it takes long.
            command: the command line.
            stdin: what it reads; never shown, it may be a secret.
            hint: the next step if it fails.

        Raises:
            ToolFailed: it ended with an error.
        """
        if self.is_dry:
            say(f"would run: {shlex.join(command)}")
            return ""
        try:
            child = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except FileNotFoundError:
            raise missing(command[0]) from None
        output = _converse(child, stdin, what)
        if child.returncode != 0:
            raise ToolFailed(_failure(what, command, output, hint))
        return output

    def attached(
        self, what: str, command: list[str], extra: Mapping[str, str], *, hint: str
    ) -> None:
        """Run on this terminal what may ask for a password; raises `ToolFailed`."""
        if self.is_dry:
            words = [f"{name}={shlex.quote(value)}" for name, value in extra.items()]
            say(f"would run: {' '.join([*words, shlex.join(command)])}")
            return
        try:
            code = subprocess.run(
                command, env={**self.environment, **extra}, check=False
            ).returncode
        except FileNotFoundError:
            raise missing(command[0]) from None
        if code != 0:
            raise ToolFailed(f"{what} failed (exit code {code}); above is why. {hint}")

    def may(self, question: str) -> bool:
        """Ask; no without a terminal, and by Ctrl-D. A dry run asks nobody."""
        if self.is_dry:
            say(f"would ask: {question}")
            return True
        if self._says_yes or self._answer is None:
            return self._says_yes
        try:
            return self._answer(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
        except EOFError:
            say("")  # the question's line has no end
            return False

    def must(self, question: str, *, otherwise: str) -> None:
        """Ask, and go on only with a yes; raises `ConsentNeeded`."""
        if not self.may(question):
            raise ConsentNeeded(f"Nothing was changed: it needs your yes. {otherwise}")


def missing(program: str) -> ToolMissing:
    """Return the error for a program that is not there."""
    where = HOW_TO_GET.get(program, "put it on the PATH")
    return ToolMissing(f"{program} is needed and not on the PATH: {where}")


def _converse(child: subprocess.Popen[str], given: str, what: str) -> str:
    """Return what it printed; it does not outlive an interruption."""
    waiting = Waiting(what)
    words: str | None = given
    printed: str | None = None
    try:
        while printed is None:
            with suppress(subprocess.TimeoutExpired):
                printed, _ = child.communicate(words, timeout=0.25)
            words = None  # given once
            waiting.tick()
    except BaseException:
        child.terminate()
        raise
    finally:
        child.wait()
        waiting.clear()
    return printed


def _failure(what: str, command: list[str], output: str, hint: str) -> str:
    lines = output.strip().splitlines()[-_TAIL:]
    return "\n".join([f"{what} failed ({command[0]}):", *lines, *([hint] if hint else [])])
