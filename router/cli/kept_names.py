"""`iir providers names` and `forget`: the names that llm-d clusters are known for."""

from __future__ import annotations

from typing import Annotated

import typer

from router.cli.output import AsJson, write_json, write_table
from router.cli.session import read, write
from router.store.known_models import forget_models, known_of

_Cluster = Annotated[str, typer.Argument(help="The cluster's provider.", metavar="NAME")]
_HOUR_S = 3600


def names(name: _Cluster, as_json: AsJson = False) -> None:
    """List the models that an llm-d cluster is known for, also while it is away."""
    known = read(lambda c: known_of(c, name))
    if as_json:
        write_json(
            [
                {
                    "id": each.model.id,
                    "base_model": each.model.base_model,
                    "context_tokens": each.model.context_tokens,
                    "missing_s": each.missing_s,
                }
                for each in known
            ]
        )
        return
    write_table(
        ("model", "base model", "context", "lists have lacked it for"),
        [
            (
                each.model.id,
                each.model.base_model,
                each.model.context_tokens,
                f"{each.missing_s // _HOUR_S} h" if each.missing_s else None,
            )
            for each in known
        ],
        empty="no names: it was never seen to serve any, or they were let go",
    )


def forget(
    name: _Cluster,
    models: Annotated[list[str], typer.Argument(help="The models' names.", metavar="MODEL")],
) -> None:
    """Let names go that an llm-d cluster is known for: what is called so may go elsewhere from now on."""
    write(lambda c: forget_models(c, name, models))
    typer.echo(
        f"forgotten of {name}: {', '.join(models)}; what it still lists comes back with a look"
    )
