"""`iir-agent config check`, `reload` and `schema`: the agent's YAML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from local_agent.choice import Choice, choose
from local_agent.cli.context import Context, Json, open_context, plain_errors
from local_agent.config import AgentConfig, ModelConfig
from local_agent.config_file import ConfigError, load_config, to_deployments
from local_agent.config_schema import json_schema
from local_agent.doctor.finding import Finding
from local_agent.doctor.models import examine_models, plans
from local_agent.domain import HostFacts
from local_agent.engines import AUTO
from local_agent.memory.budget import guard_of
from local_agent.memory.estimate import budget_mb, budget_reason
from local_agent.this_host import this_host

app = typer.Typer(help="The agent's YAML file.", no_args_is_help=True)

_CHANGES = {
    "added": "added",
    "removed": "removed",
    "changed": "changed",
    "restarting": "restarts once its requests have finished",
    "settings": "setting changed",
    "notes": "note",
}


@app.command("check")
def check(
    file: Annotated[Path | None, typer.Argument(help="Default: the agent's own file.")] = None,
    as_json: Json = False,
) -> None:
    """Check a file, list what it makes of the models, and what of it can't work on this host."""
    with plain_errors(as_json=as_json):
        context = open_context()
        path = file or context.settings.config_path
        try:
            config = _load(context, file)
        except ConfigError as error:
            if not as_json:
                raise
            place = {"line": error.line, "field": error.field or None, "rule": error.rule}
            _write({"file": error.file, "is_good": False, "error": str(error), **place})
            raise typer.Exit(1) from None
        warnings = _warnings(context, config)
        choices = _choices(context, config)
        if as_json:
            models = [
                {
                    "id": model.id,
                    "aliases": list(model.aliases),
                    "engine": model.engine,
                    "chosen": choice.engine,
                    "why": choice.reason,
                }
                for model, choice in choices
            ]
            shown = [
                {"model": found.check.partition(" ")[2], "message": found.message, "fix": found.fix}
                for found in warnings
            ]
            _write({"file": path.name, "is_good": True, "models": models, "warnings": shown})
            return
        _show(path, choices, warnings)
        typer.echo(_budget_line(this_host(context.settings), config))


@app.command("reload")
def reload(as_json: Json = False) -> None:
    """Make the running agent read its file now; it also does so by itself within two seconds."""
    with plain_errors(as_json=as_json):
        answer = open_context().agent.take_config()
        if as_json:
            _write(answer)
            return
        lines = [
            f"{text}: {', '.join(answer[name])}"
            for name, text in _CHANGES.items()
            if answer.get(name)
        ]
        typer.echo("\n".join(lines) if lines else "nothing has changed")


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of the file, for editors: they complete fields and mark errors."""
    _write(json_schema())


def _load(context: Context, file: Path | None) -> AgentConfig:
    return load_config(file, context.settings.environment()) if file else context.config()


def _budget_line(host: HostFacts, config: AgentConfig) -> str:
    budget, reserve = config.memory_budget, config.memory_reserve
    size = budget_mb(host, budget=budget, reserve=reserve)
    why = budget_reason(host, budget=budget, reserve=reserve)
    return f"memory for all models: {size} MiB ({why}); memory_guard: {guard_of(host, config)}"


def _warnings(context: Context, config: AgentConfig) -> list[Finding]:
    host = this_host(context.settings)
    budget = budget_mb(host, budget=config.memory_budget, reserve=config.memory_reserve)
    found = examine_models(plans(config, context.store, host), budget)
    return [one for one in found if one.level != "ok"]


def _choices(context: Context, config: AgentConfig) -> list[tuple[ModelConfig, Choice]]:
    """Return each model with the engine that it gets here."""
    host = this_host(context.settings)
    deployments = to_deployments(config, context.store)
    return [
        (model, choose(deployment, host))
        for model, deployment in zip(config.models, deployments, strict=True)
    ]


def _show(path: Path, choices: list[tuple[ModelConfig, Choice]], warnings: list[Finding]) -> None:
    if path.exists():
        typer.echo(f"{path.name} is good; the models:")
    else:
        typer.echo(f"there is no {path.name}; the known models:")
    for model, choice in choices:
        names = ", ".join([model.id, *model.aliases])
        is_auto = model.engine == AUTO
        engine = f"auto: {choice.engine}, {choice.reason}" if is_auto else model.engine
        typer.echo(f"  {names}  (engine {engine})")
    for found in warnings:
        fix = f" ({found.fix})" if found.fix else ""
        typer.echo(f"warning: {found.check}: {found.message}{fix}")


def _write(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
