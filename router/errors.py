"""The router's own errors; the shared part of the tree is `shared.http.errors`."""

from __future__ import annotations

from shared.http.errors import (
    ApiError,
    BadRequest,
    Forbidden,
    Unauthorized,
    Unavailable,
    UpstreamTimeout,
)


class NoEndpoint(Unavailable):
    """The model is known, but no endpoint that may serve it is there now."""

    code = "no_endpoint"


class CircuitOpen(Unavailable):
    """Every endpoint of the model has failed too often just now."""

    code = "circuit_open"


class UpstreamBusy(ApiError):
    """The model's endpoints asked to be left alone for a while, and it is not over."""

    status = 429
    type = "rate_limit_error"
    code = "upstream_busy"
    origin = "upstream"
    is_retryable = True


class DeadlineExceeded(ApiError):
    """No endpoint gave a first byte within the time for all attempts together."""

    status = 504
    code = "deadline_exceeded"


class AgentUnavailable(Unavailable):
    """The model lives on an agent that is not connected."""

    code = "agent_unavailable"


class AgentLost(AgentUnavailable):
    """The agent fell silent, started anew or was removed while a request waited for it."""

    def __init__(self, message: str) -> None:
        """Hold the message for the client."""
        super().__init__(f"{message} Ask again.", retry_after_s=5)


class ClusterError(ApiError):
    """An llm-d cluster did not take a request. Nothing was committed, so another endpoint may.

    `rest_s`: for how long others are better asked first.
    """

    status = 503
    code = "cluster_unavailable"
    origin = "upstream"
    is_retryable = True
    rest_s: float = 2.0


class ClusterContended(ClusterError):
    """Its queues are full, or the request's time in them is over; no GPU has worked for it."""

    status = 429
    type = "rate_limit_error"
    code = "cluster_contended"
    rest_s = 1.0


class ClusterEvicted(ClusterContended):
    """It dropped the request in favour of more important ones, maybe after work on it."""

    code = "cluster_evicted"
    rest_s = 5.0


class ClusterCold(ClusterError):
    """It has no pod that could serve: it is scaled to zero, or starts."""

    code = "cluster_cold"
    rest_s = 5.0


class ClusterRestarting(ClusterError):
    """Its endpoint picker stops, and starts anew."""


class PickerGone(ClusterError):
    """Its endpoint picker does not answer, so the gateway can send requests nowhere."""


class PoolWithoutPicker(ClusterError):
    """One pool's endpoint picker does not answer; those of the gateway's other pools may."""


class PodUnreachable(ClusterError):
    """The pod that was picked took no connection. Asked again, the cluster picks anew."""

    rest_s = 0.0  # the other pods work


class RouteTimeout(UpstreamTimeout):
    """The gateway's route has a time limit, and the request takes longer: it would again, anywhere there."""

    is_retryable = False


class ProviderNotConfigured(Unavailable):
    """The model's provider has no credential here, or no address."""

    code = "provider_not_configured"
    is_retryable = False


class ZoneRefused(Forbidden):
    """No candidate lies in the zone that the request is confined to."""

    code = "zone_refused"


class LeaseProtocolUnsupported(BadRequest):
    """The agent speaks another version of the lease protocol."""

    code = "lease_protocol_unsupported"


class AgentAddressRefused(Forbidden):
    """An agent gave an address that is not its own."""

    code = "agent_address_refused"


class JoinTokenRefused(Unauthorized):
    """The join token is unknown, was used or has expired."""

    code = "join_token_refused"


class TooManyJoins(ApiError):
    """One address tries to join too often."""

    status = 429
    type = "rate_limit_error"
    code = "too_many_joins"
    origin = "client"
    is_retryable = True
