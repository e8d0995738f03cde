"""Write `docs/configuration.md` and `.env.example` from both services' settings.

`--check` writes nothing and fails if one of them is out of date: part of `make lint`.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from local_agent.settings import AgentSettings
from router.settings import Settings
from scripts.reference.writing import table, write_or_check
from shared.kit.environment import BaseServiceSettings

REFERENCE = Path("docs/configuration.md")
EXAMPLE = Path(".env.example")


class Variable(NamedTuple):
    """One variable: its name, its default as one would write it, and what it means."""

    name: str
    default: str
    meaning: str


CREDENTIALS = [
    Variable(
        "EXTERNAL_OPENAI_KEY",
        "",
        "The router's own OpenAI key. Sent to the base URL of the provider `openai` only; never "
        "logged. Without it, models of that provider answer 503 `provider_not_configured`.",
    ),
    Variable(
        "LLMD_API_KEY",
        "",
        "The credential for the cluster at `LLMD_ENDPOINT`, where its gateway or its model servers want one. "
        "Sent there only; never logged.",
    ),
]

HEAD = """\
# Configuration

<!-- Written by `make docs` from the settings; edit the descriptions there. -->

Precedence: a flag on the command line, then the environment, then `.env`, then the default. In a
checkout that is the working directory's `.env`; [installed](install.md) programs read
`$IIR_HOME/.env`, wherever they are called. A value that does not fit is refused at the start, by
name. `.env.example` lists every variable; copy it to `.env` and uncomment what you need. An empty
value counts as unset.

Which models an agent serves is a YAML file, not a variable: see [The local agent](agents.md).
"""

EXAMPLE_HEAD = """\
# Copy to .env (installed without a checkout: to $IIR_HOME/.env) and uncomment what you need.
# Every line shows the default. The environment beats this file. Written by `make docs` from the settings.
"""


def variables(
    settings: type[BaseModel], leave_out: type[BaseModel] | None = None
) -> list[Variable]:
    """Return the variables that a settings class reads, in its order."""
    known = leave_out.model_fields if leave_out else {}
    return [
        Variable(name.upper(), _default(field), field.description or "")
        for name, field in settings.model_fields.items()
        if name not in known
    ]


def _default(field: FieldInfo) -> str:
    """Return the default as text; computed ones are told by the description."""
    if field.default_factory is not None or field.default is None:
        return ""
    return str(field.default)


def sections() -> Iterator[tuple[str, list[Variable]]]:
    """Yield a title and its variables."""
    yield "Both services", variables(BaseServiceSettings)
    yield "Router", [*variables(Settings, BaseServiceSettings), *CREDENTIALS]
    yield "Local agent", variables(AgentSettings, BaseServiceSettings)


def reference() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, found in sections():
        rows = [(f"`{name}`", _cell(default), meaning) for name, default, meaning in found]
        parts.append(f"## {title}\n\n{table(('variable', 'default', 'meaning'), rows)}")
    return "\n".join(parts)


def _cell(default: str) -> str:
    return f"`{default}`" if default else ""


def example() -> str:
    """Return the file to copy."""
    lines = [EXAMPLE_HEAD]
    for title, found in sections():
        lines.append(f"# --- {title} ---\n")
        for name, default, meaning in found:
            lines += [f"# {line}" for line in textwrap.wrap(meaning, 96)]
            lines.append(f"#{name}={default}\n")
    return "\n".join(lines)


def main() -> int:
    """Write both files, or compare them."""
    wanted = {REFERENCE: reference(), EXAMPLE: example()}
    return write_or_check(wanted, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
