"""`docs/cli.md`: every command of `iir` and `iir-agent`, and the targets of the Makefile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer.main

import local_agent.cli.app
import router.cli
from scripts.reference.writing import table

PROGRAMS = {
    "iir": ("the router and its registry", router.cli.app),
    "iir-agent": ("the agent on this machine", local_agent.cli.app.app),
}
_TARGET = re.compile(r"^([a-z][a-z-]*):.*?## (.*)$", re.MULTILINE)

HEAD = """\
# Commands

<!-- Written by `make docs` from the commands themselves; edit their help. -->

In a checkout they lie in `.venv/bin`. `--help` explains each, lists take `--json`, and `iir --version` and
`iir-agent --version` say which release it is. A command ends with 0, with 1 and one line if it could not do what it was
asked, and with 2 for a wrong use. Settings come from the environment and `.env`: [Configuration](configuration.md).

"""

# Where a page says more than the help does.
MORE = {
    "iir usage": "operations.md#who-used-what",
    "iir providers add": "howto/provider.md",
    "iir models add": "howto/model.md",
    "iir keys create": "operations.md#security",
    "iir agents invite": "agents.md#joining-a-router",
    "iir-agent join": "agents.md#joining-a-router",
    "iir-agent pull": "agents.md#pulls",
    "iir-agent events": "agent-commands.md#what-happens-to-workers",
    "iir-agent logs": "agent-commands.md#what-an-engine-prints",
    "iir-agent drain": "agent-commands.md#draining",
    "iir-agent service install": "agent-service.md",
    "iir-agent reset": "agent-commands.md#forgetting-failures",
    "iir-agent plan": "agents.md#memory",
    "iir-agent doctor": "agent-operation.md#finding-out-what-is-wrong",
    "iir-agent config reload": "agent-operation.md#changing-its-file-while-it-runs",
    "iir-agent config check": "agent-operation.md#checking-it-first",
}


def commands(program: str) -> Iterator[tuple[str, Any]]:
    """Yield the whole name and the command of all that a program can do."""
    yield from _below(typer.main.get_command(PROGRAMS[program][1]), program)


def _below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        if not command.hidden:
            yield name, command
        return
    for word in sorted(inner):
        yield from _below(inner[word], f"{name} {word}")


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for program, (what, _) in PROGRAMS.items():
        found = list(commands(program))
        rows = [
            [f"[`{name}`](#{name.replace(' ', '-')})", _first_line(command)]
            for name, command in found
        ]
        parts += [f"## `{program}`: {what}\n\n", table(["command", "what"], rows), "\n"]
        parts += [_section(name, command) for name, command in found]
    parts += ["## `make`\n\n", table(["target", "what"], _targets())]
    return "".join(parts)


def _first_line(command: Any) -> str:
    return str(command.help).strip().partition("\n")[0]


def _targets() -> list[list[str]]:
    makefile = Path("Makefile").read_text()
    return [[f"`make {name}`", what] for name, what in _TARGET.findall(makefile)]


def _section(name: str, command: Any) -> str:
    rows = [
        [f"`{_spelling(one)}`", _meaning(one), _default(one)]
        for one in command.params
        if not getattr(one, "hidden", False)
    ]
    text = f"### `{name}`\n\n{str(command.help).strip()}"
    if name in MORE:
        text += f" [More]({MORE[name]})."
    text += f"\n\n```text\n{_usage(name, command)}\n```\n\n"
    if rows:
        text += table(["argument", "meaning", "default"], rows) + "\n"
    return text


def _usage(name: str, command: Any) -> str:
    words = [name]
    for one in command.params:
        if one.param_type_name == "argument":
            words.append(_spelling(one) if one.required else f"[{_spelling(one)}]")
        elif one.required:
            words.append(_spelling(one))
    if any(one.param_type_name == "option" and not one.required for one in command.params):
        words.append("[OPTIONS]")
    return " ".join(words)


def _spelling(one: Any) -> str:
    """Return how an argument or option is written."""
    value = one.metavar or one.name.upper()
    if one.param_type_name == "argument":
        return str(value)
    names = ", ".join([*one.opts, *one.secondary_opts])
    if getattr(one, "is_flag", False):
        return names
    return f"{names} {one.metavar or one.opts[0].lstrip('-').upper().replace('-', '_')}"


def _choices(one: Any) -> list[str]:
    kind = getattr(getattr(one, "type_descriptor", None), "annotation", None)
    for each in (*get_args(kind), kind):  # an option that may be repeated is a list
        if isinstance(each, type) and issubclass(each, Enum):
            return [str(member.value) for member in each]
    return []


def _meaning(one: Any) -> str:
    choices = _choices(one)
    text = str(one.help or "").strip()
    return f"{text} One of: {', '.join(f'`{c}`' for c in choices)}." if choices else text


def _default(one: Any) -> str:
    if one.required:
        return "required"
    value = one.default
    if value is None or value is False or callable(value):
        return ""
    if value is True:
        return f"`{one.opts[0]}`"
    return f"`{value.value if isinstance(value, Enum) else value}`"
