"""What every command starts from, and how every command fails: one line, no traceback."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from local_agent.cli.running import AgentRefused, AgentUnreachable, RunningAgent, addresses
from local_agent.config import AgentConfig
from local_agent.config_file import ConfigError
from local_agent.settings import AgentSettings, load_settings
from local_agent.this_host import read_config
from local_agent.weights.errors import PullError
from local_agent.weights.store import WeightStore

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class CommandFailed(Exception):
    """A command can't do what it was asked; the message says why and what to do."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        """End with the exit code `code`: 1 for a failure, 2 for a wrong use."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Context:
    """Settings, and what follows from them."""

    settings: AgentSettings

    @property
    def store(self) -> WeightStore:
        """Return the weights on this host."""
        return WeightStore(self.settings.models_dir)

    @property
    def agent(self) -> RunningAgent:
        """Return the agent that may run here."""
        return RunningAgent(self.agent_urls)

    @property
    def agent_urls(self) -> tuple[str, ...]:
        """Return where the agent of this host may answer."""
        settings = self.settings
        run_file = settings.iir_home / "run" / "agent.json"
        return addresses(settings.agent_host, settings.agent_port, run_file)

    def config(self) -> AgentConfig:
        """Read the agent's file; without one there are the known models.

        Raises:
            ConfigError: it is wrong, or AGENT_CONFIG names a file that is not there.
        """
        return read_config(self.settings)

    def show(self, path: Path) -> str:
        """Return a path for people, without the folders above the installation."""
        return self.settings.show(path)


def open_context() -> Context:
    """Read the settings.

    Raises:
        CommandFailed: one of them is wrong.
    """
    return Context(read_settings())


def read_settings(**flags: object) -> AgentSettings:
    """Read the settings; `flags` beat the environment.

    Raises:
        CommandFailed: one of them is wrong.
    """
    try:
        return load_settings(**flags)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in found["loc"]).upper()
        raise CommandFailed(f"{name}: {found['msg']}", code=2) from None


@contextlib.contextmanager
def plain_errors(*, as_json: bool = False) -> Iterator[None]:
    """Turn expected errors into one line on stderr (or one JSON line) and an exit code."""
    try:
        yield
    except CommandFailed as error:
        raise _exit(str(error), error.code, as_json=as_json) from None
    except (PullError, ConfigError, AgentUnreachable, AgentRefused) as error:
        raise _exit(str(error), 1, as_json=as_json) from None


def _exit(message: str, code: int, *, as_json: bool) -> typer.Exit:
    if as_json:
        typer.echo(json.dumps({"error": message}))
    else:
        typer.echo(f"iir-agent: {message}", err=True)
    return typer.Exit(code)
