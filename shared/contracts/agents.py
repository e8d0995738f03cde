"""The lease protocol between agent and router: JSON bodies of `/internal/v1/agents`.

`PUT /internal/v1/agents/{agent_id}` registers (`Registration` → `LeaseGrant`);
`PUT …/lease` is the heartbeat (`Heartbeat` → `LeaseGrant`); `DELETE …/lease?incarnation=…&seq=…` gives it
back. Every message of an incarnation has a `seq` of its own, which grows: what comes late is known by it.
`POST /internal/v1/agents/join` exchanges a one-time token (`JoinRequest` → `CredentialGrant`), and
`POST …/rotate` the present credential (→ `CredentialGrant`), for a new one. A present credential ends when
the new one is used, which `POST …/confirm` (→ `Confirmation`) does and nothing else.
Answers: 404/410 = register now; 409 = superseded by a newer incarnation, stop; 401/403 = the
credential is not accepted.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

PROTOCOL_VERSION = 1

ModelStatus = Literal["unloaded", "loading", "loaded", "sleeping", "downloading", "failed"]
AgentState = Literal["ready", "draining"]
PowerSource = Literal["ac", "battery", "unknown"]
Thermal = Literal["nominal", "fair", "serious", "critical", "unknown"]
LidState = Literal["open", "closed", "unknown"]


class _Wire(BaseModel):
    """Unknown fields are ignored, so that a newer peer can talk to an older one."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class PromptSpeed(_Wire):
    """How long the first token of an answer took for a prompt of so many tokens."""

    prompt_tokens: int = Field(ge=0)
    ttft_ms: float = Field(ge=0, allow_inf_nan=False)


class Bench(_Wire):
    """What one engine of an agent did with a model, as `iir-agent bench` measured it on that machine.

    `is_current`: it was measured with the configuration and engine of now; else it tells of an earlier
    one. `is_disturbed`: something else had work then, so that the figures are a lower bound.
    """

    engine: str
    engine_version: str | None = None
    device: str | None = Field(
        default=None, description="Where it computes, like `CPU only`; None: not known."
    )
    measured_at: int = Field(default=0, ge=0, description="Seconds since 1970.")
    load_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    ttft: tuple[PromptSpeed, ...] = ()
    tokens_per_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    parallel: int = Field(default=1, ge=1)
    parallel_tokens_per_s: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Of `parallel` requests together."
    )
    memory_peak_bytes: int | None = Field(default=None, ge=0)
    is_current: bool = True
    is_disturbed: bool = False


class AgentModel(_Wire):
    """One model that an agent knows, loaded or not."""

    id: str = Field(min_length=1, max_length=256)
    aliases: tuple[str, ...] = ()
    engine: str = ""
    status: ModelStatus = "unloaded"
    is_pulled: bool = True
    pull_command: str | None = None
    context_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    apis: tuple[str, ...] | None = Field(
        default=None,
        description="Which of chat, completions, embeddings, responses, messages its engine speaks; "
        "None: the first three.",
    )
    max_in_flight: int | None = Field(default=None, ge=1)
    bench: tuple[Bench, ...] = Field(
        default=(), description="What was measured of it there, the present engine first."
    )

    @property
    def shown_status(self) -> str:
        """Return the word for it in the lists of both services."""
        return shown_status(self.status, is_pulled=self.is_pulled)


def shown_status(status: str, *, is_pulled: bool) -> str:
    """Return the word for a model's status in lists: `not pulled` where that is why it is unloaded."""
    return "not pulled" if status == "unloaded" and not is_pulled else status


class Queue(_Wire):
    """Requests on the agent and in its engines, all models together, whoever sent them."""

    running: int = 0
    waiting: int = 0
    max_waiting: int | None = Field(
        default=None, description="How many may wait in the agent, for the models that are loaded."
    )
    expected_wait_s: float = Field(
        default=0.0, description="How long the next request waits for the busiest loaded model."
    )


class Registration(_Wire):
    """What an agent says of itself once per start, and again when its router lost the lease."""

    protocol: int = PROTOCOL_VERSION
    incarnation: int = Field(
        ge=0, description="Grows with each start of the agent (ms since 1970)."
    )
    name: str = Field(min_length=1, max_length=128)
    base_url: str = Field(max_length=512, description="http://ADDRESS:PORT, an IP literal.")
    access_token: str = Field(min_length=16, max_length=256, description="The router's key to it.")
    platform: str = ""
    engines: tuple[str, ...] = ()
    models: tuple[AgentModel, ...] = ()
    labels: dict[str, str] = {}
    catalog_hash: str = ""
    seq: int | None = Field(
        default=None, ge=0, description="As a heartbeat's; None: an older agent, which sends none."
    )
    state: AgentState = "ready"
    queue: Queue = Queue()


class Capacity(_Wire):
    """Memory that an agent gives to models, in bytes.

    Of `budget_bytes`, `free_bytes` are not held by any worker; `evictable_bytes` are held by idle ones
    that would make room for another model.
    """

    budget_bytes: int = Field(ge=0)
    free_bytes: int = Field(ge=0)
    evictable_bytes: int = Field(default=0, ge=0)


class Power(_Wire):
    """What an agent's host runs on, and how warm it is. What can't be known is `unknown` or None."""

    source: PowerSource = "unknown"
    battery_percent: int | None = Field(default=None, ge=0, le=100)
    thermal: Thermal = "unknown"
    lid: LidState = "unknown"


class Heartbeat(_Wire):
    """Renews the lease and reports the load; `seq` grows with each message of an incarnation."""

    lease_id: str
    incarnation: int
    seq: int = Field(ge=0)
    state: AgentState = "ready"
    queue: Queue = Queue()
    capacity: Capacity | None = Field(default=None, description="None: it does not tell.")
    models: tuple[AgentModel, ...] | None = Field(default=None, description="None: as before.")
    catalog_hash: str = ""
    power: Power | None = Field(default=None, description="None: it does not tell.")
    reason: str | None = Field(
        default=None, max_length=128, description="Why its host makes it drain, if it does."
    )


class LeaseGrant(_Wire):
    """The right to receive traffic for `ttl_s` seconds from when the router saw the message."""

    lease_id: str
    ttl_s: float = Field(gt=0, allow_inf_nan=False)
    renew_s: float = Field(gt=0, allow_inf_nan=False)
    epoch: str = Field(
        default="",
        max_length=64,
        description="New at each start of the router; empty: an older one.",
    )


class JoinRequest(_Wire):
    """Asks for a credential. An agent that has one sends it along, and gets the next one."""

    token: str = Field(min_length=1, max_length=256, repr=False)
    name: str = Field(min_length=1, max_length=128, description="What the agent calls itself.")


class Confirmation(_Wire):
    """The router knows the credential; `name` is what it calls the agent.

    `release` and `protocol` are the router's; None where an older one does not say.
    """

    name: str = Field(min_length=1, max_length=128)
    release: str | None = Field(default=None, max_length=64)
    protocol: int | None = None


class CredentialGrant(Confirmation):
    """An agent's new credential. It is told once."""

    credential: str = Field(pattern=r"^[!-~]{16,256}$", repr=False)
