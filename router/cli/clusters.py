"""What llm-d clusters serve, for commands: asked there, since only running routers remember it."""

from __future__ import annotations

from collections.abc import Iterable

from router.cli.output import CommandFailed
from router.cli.upstream_models import fetch_model_ids
from router.domain import LLMD, Provider
from router.fleet.endpoints import ProviderEndpoints
from router.settings import Settings

_LIMIT_S = 2.0


def cluster_models(
    providers: Iterable[Provider], settings: Settings
) -> tuple[list[tuple[Provider, str]], dict[str, CommandFailed]]:
    """Return the models of all clusters, and by name why one could not be asked."""
    endpoint_of = ProviderEndpoints(settings)
    found: list[tuple[Provider, str]] = []
    problems: dict[str, CommandFailed] = {}
    for provider in providers:
        endpoint = endpoint_of(provider) if provider.dialect == LLMD else None
        if endpoint is None:
            continue
        url = f"{endpoint.base_url}/models"
        try:
            # as the router asks it, which knows no proxies
            ids = fetch_model_ids(
                provider.name, url, endpoint.credential, limit_s=_LIMIT_S, by_proxy=False
            )
        except CommandFailed as error:
            problems[provider.name] = error
        else:
            found += [(provider, model) for model in ids]
    return found, problems
