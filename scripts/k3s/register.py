"""The address of llm-d for the router: `LLMD_ENDPOINT` in `.env`, which it reads when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values, set_key, unset_key

from scripts.devstack.plan import record_path
from scripts.devstack.record import Record
from scripts.devstack.text import say
from scripts.k3s.tools import Tools

SETTING = "LLMD_ENDPOINT"
RESTART = "make down && make up"


def register(
    tools: Tools, endpoint: str, env_file: Path, home: Path, environment: Mapping[str, str]
) -> None:
    """Write the setting with consent, and say what makes the router read it."""
    set_elsewhere = environment.get(SETTING)
    if set_elsewhere and set_elsewhere != endpoint:
        say(f"The environment sets {SETTING}={set_elsewhere}, which beats .env: unset it.")
    before = _written(env_file)
    if before != endpoint and not _write(tools, endpoint, env_file, before):
        say(f"Nothing was written. For the router: echo '{SETTING}={endpoint}' >> {env_file}")
        return
    record = Record.read(record_path(home))
    if record is None or not record.is_running():
        say(f"The router reads {SETTING} from {env_file} when it starts: make up")
    elif before != endpoint:
        say(f"The router at {record.router_url} takes it when it starts again: {RESTART}")


def forget(tools: Tools, endpoint: str, env_file: Path) -> None:
    """Take our setting out of `.env`, with consent; another's stays."""
    if not endpoint or _written(env_file) != endpoint:
        return
    if tools.may(f"Take {SETTING}={endpoint} out of {env_file}?"):
        if not tools.is_dry:
            unset_key(env_file, SETTING, follow_symlinks=True)
            say(f"{SETTING} is out of {env_file}; a running router forgets it by: {RESTART}")
    else:
        say(f"{env_file} still has {SETTING}={endpoint}: take it out, then {RESTART}")


def _write(tools: Tools, endpoint: str, env_file: Path, before: str | None) -> bool:
    instead = f" in place of {before}" if before else ""
    if not tools.may(f"Write {SETTING}={endpoint} into {env_file}{instead}, for the router?"):
        return False
    if not tools.is_dry:
        set_key(env_file, SETTING, endpoint, quote_mode="never", follow_symlinks=True)
    return True


def _written(env_file: Path) -> str | None:
    return dotenv_values(env_file).get(SETTING) if env_file.is_file() else None
