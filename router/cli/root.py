"""The root of `iir`: serving, migrating, seeding, and the groups of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli import agents, doctor, keys, models, providers, usage
from router.cli.output import PoliteGroup
from router.cli.session import write
from router.settings import load_settings
from router.store.migrate import migrate as bring_up_to_date
from router.store.prepare import PACKAGED
from shared.kit.memory import loading
from shared.kit.version_option import add_version

app = typer.Typer(
    cls=PoliteGroup,
    name="iir",
    no_args_is_help=True,
    # Its tracebacks show local variables, among them keys.
    pretty_exceptions_enable=False,
)
app.add_typer(providers.app, name="providers")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(agents.app, name="agents")
app.command("usage")(usage.usage)
app.command("doctor")(doctor.doctor)
add_version(
    app, "iir", "The Intelligent Inference Router: one OpenAI-compatible base_url for all models."
)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (ROUTER_HOST).")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on (ROUTER_PORT).", min=0, max=65535)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes (WEB_CONCURRENCY).", min=1, max=64)
    ] = None,
) -> None:
    """Serve until told to stop."""
    with loading():
        from router.app import serve as run  # noqa: PLC0415 - the web stack loads for this alone

    run(load_settings(router_host=host, router_port=port, web_concurrency=workers))


@app.command()
def migrate() -> None:
    """Make the registry, or bring it to this version's form."""
    bring_up_to_date(load_settings().store_url)
    typer.echo("the registry is up to date")


@app.command("seed")
def seed_command(
    file: Annotated[
        Path | None, typer.Argument(help="YAML file; by default what is packaged.")
    ] = None,
) -> None:
    """Add providers, prefix rules and models; what is there already is not changed."""
    from router.store.seed import read_seed, seed  # noqa: PLC0415 - YAML loads for this alone

    document = read_seed(file or PACKAGED)
    added = write(lambda c: seed(c, document, only_once=file is None), is_seeded=False)
    typer.echo(f"{added} entries added" if added else "nothing to add")
