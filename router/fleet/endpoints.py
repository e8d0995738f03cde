"""Providers as endpoints: what the registry says of them, and what the settings add."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from router.domain import LLMD, Endpoint, EndpointId, Gateway, HeaderStyle, Provider
from shared.http.base_url import api_base
from shared.http.transport import Timeouts

_OPENAI = "openai"
_LLMD_KEY = "LLMD_API_KEY"


class EndpointSettings(Protocol):
    """What of the settings matters here."""

    @property
    def openai_base_url(self) -> str | None:
        """Return the base URL of the provider `openai`, if it is not the registry's."""
        ...

    @property
    def llmd_endpoint(self) -> str | None:
        """Return the address of the provider `llmd`."""
        ...

    @property
    def llmd_metrics_url(self) -> str | None:
        """Return where the endpoint picker of the provider `llmd` tells its load."""
        ...

    @property
    def llmd_model_header(self) -> str | None:
        """Return the header by which llm-d's gateways choose among several pools."""
        ...

    @property
    def llmd_headers(self) -> HeaderStyle:
        """Return which names llm-d's own headers have."""
        ...

    @property
    def llmd_queue_ttl_s(self) -> float:
        """Return for how long llm-d may hold a request before it begins."""
        ...

    @property
    def timeouts(self) -> Timeouts:
        """Return the router's time limits."""
        ...

    def credential(self, variable: str) -> str | None:
        """Return the value of an environment variable that holds a credential."""
        ...


class ProviderEndpoints:
    """Returns a provider's endpoint; None if its credential or its address is not there."""

    def __init__(self, settings: EndpointSettings) -> None:
        """Go by these settings; the address of `llmd` may be set anew."""
        self._settings = settings
        self.llmd_endpoint = settings.llmd_endpoint
        # llm-d's queue comes on top of what a model may take; how long an answer takes, nobody knows
        limits = settings.timeouts
        first_byte_s = limits.first_byte_s + settings.llmd_queue_ttl_s
        self._of_clusters = replace(limits, first_byte_s=first_byte_s, total_s=None)

    def __call__(self, provider: Provider) -> Endpoint | None:
        """See the class."""
        base_url = self._base_url(provider)
        key_env = provider.key_env
        if key_env is None and self._is_set_here(provider):
            credential = self._settings.credential(_LLMD_KEY)
        else:
            credential = self._settings.credential(key_env) if key_env else None
        if not base_url or (key_env and credential is None):
            return None
        is_cluster = provider.dialect == LLMD
        return Endpoint(
            id=EndpointId(provider.name),
            base_url=api_base(base_url),
            backend=provider.dialect,
            zone=provider.zone,
            credential=credential,
            timeouts=self._of_clusters if is_cluster else None,
            gateway=self._gateway(provider) if is_cluster else None,
        )

    def _base_url(self, provider: Provider) -> str:
        found = None
        if provider.name == _OPENAI:
            found = self._settings.openai_base_url
        elif self._is_set_here(provider):
            found = self.llmd_endpoint
        return found or provider.base_url

    def _gateway(self, provider: Provider) -> Gateway:
        is_set_here = self._is_set_here(provider)
        return Gateway(
            metrics_url=self._settings.llmd_metrics_url if is_set_here else None,
            model_header=self._settings.llmd_model_header,
            header_style=self._settings.llmd_headers,
        )

    def _is_set_here(self, provider: Provider) -> bool:
        """Tell whether the settings say where it is; what else they say of it goes nowhere else."""
        is_it = provider.name == provider.dialect == LLMD
        return is_it and self.llmd_endpoint is not None
