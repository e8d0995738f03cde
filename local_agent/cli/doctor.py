"""`iir-agent doctor`: what is wrong, and how to put it right."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import typer

from local_agent.cli import listing
from local_agent.cli.context import open_context, plain_errors
from local_agent.doctor.finding import Finding
from shared.kit.logs import configure_logs


def examine(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this host, the agent's file, its router and its models; exit 1 if there is a problem."""
    from local_agent.doctor.examine import (  # noqa: PLC0415 - other commands start faster
        examine as look,
    )

    configure_logs(level="error", json=False)
    with plain_errors(as_json=as_json):
        context = open_context()
        findings = list(look(context.settings, context.agent_urls))
        if as_json:
            typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            show(findings)
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def show(findings: Iterable[Finding]) -> None:
    """Print findings as a table."""
    rows = [(found.check, found.level, found.message, found.fix or "-") for found in findings]
    listing.console().print(listing.table(("check", "level", "finding", "fix"), rows))
