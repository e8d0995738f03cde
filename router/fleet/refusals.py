"""What a request hears when nobody can serve its model. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from router.domain import Provider, Zone
from router.errors import AgentUnavailable, NoEndpoint, ProviderNotConfigured, ZoneRefused
from shared.contracts.agents import AgentModel
from shared.http.errors import ModelNotFound, ModelNotPulled, UnsupportedApi


def unknown_model(name: str, untold: Sequence[str]) -> ModelNotFound:
    """Return the error for a name that nobody knows; `untold`: clusters that may, but have not told it."""
    hint = "GET /v1/models lists what is there."
    if untold:
        hint += f" The cluster {untold[0]!r} has not told yet what it serves: iir doctor shows why."
    return ModelNotFound(f"The model {name!r} does not exist. {hint}", param="model")


def without_deployment(name: str) -> NoEndpoint:
    """Return the error for a model that is registered, but nowhere."""
    return NoEndpoint(f"{name!r} has no deployment. Add one: iir models add.")


def missing_setting(provider: Provider) -> tuple[str, str]:
    """Return what a provider without an endpoint lacks, and which variable would give it."""
    return ("credential", provider.key_env) if provider.key_env else ("address", "LLMD_ENDPOINT")


def not_configured(provider: Provider) -> ProviderNotConfigured:
    """Return the error for a model of a provider whose key or address is not set."""
    what, variable = missing_setting(provider)
    how = "environment or .env, and restart it."
    if what == "address":
        how = ".env, which it takes at once, or in its environment, and restart it."
    return ProviderNotConfigured(
        f"The provider {provider.name!r} has no {what}. Set {variable} in the router's {how}"
    )


def outside_zone(zone: Zone | None) -> ZoneRefused:
    """Return the error for a model that is served, but not in the zone that was asked for."""
    return ZoneRefused(
        f"No endpoint for this model lies in the zone {zone.value if zone else ''!r}."
    )


def not_pulled(model: AgentModel) -> ModelNotPulled:
    """Return the error for a model of an agent that has not its weights, or not yet."""
    command = model.pull_command or f"iir-agent pull {model.id}"
    text = f"are not on this machine yet. Pull them with: {command}"
    if model.status == "downloading":
        text = "are being pulled. `iir-agent ps` on the agent's machine shows how far that is."
    return ModelNotPulled(f"The weights of {model.id!r} {text}", param="model")


def unsupported(name: str, path: str) -> UnsupportedApi:
    """Return the error for a model whose endpoints do not speak the route's API."""
    return UnsupportedApi(
        f"No endpoint of the model {name!r} speaks {path}. Use /v1/chat/completions, or, if its endpoint "
        "does speak it, say so: iir providers set NAME --api …, or `apis:` in the agent's YAML file.",
        param="model",
    )


def no_agent() -> AgentUnavailable:
    """Return the error for a model whose agents are away."""
    return AgentUnavailable(
        "The agent that has this model is not connected. Start it (iir-agent serve; in a checkout: make dev); "
        "it comes back by itself.",
        retry_after_s=5,
    )
