"""What would have to happen before a model can be loaded: the dry run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from local_agent.domain import ModelId
from local_agent.errors import InsufficientMemory
from local_agent.memory.eviction import Resident
from shared.http.errors import error_body


class Verdict(str, Enum):
    """Whether a model can be had."""

    LOADED = "loaded"
    FITS = "fits"
    EVICTS = "evicts"
    WAITS = "waits"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a load needs, and who would have to go for it. Sizes in MiB.

    `cause` says why the machine has no room although the ledger has, if that is so.
    """

    model: ModelId
    verdict: Verdict
    needs_mb: int
    free_mb: int
    budget_mb: int
    would_go: tuple[Resident, ...] = ()
    cause: str | None = None

    def as_values(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "model": self.model,
            "verdict": self.verdict.value,
            "needs_mb": self.needs_mb,
            "free_mb": self.free_mb,
            "budget_mb": self.budget_mb,
            "would_go": [
                {
                    "model": resident.model,
                    "memory_mb": resident.memory_mb,
                    "is_pinned": resident.is_pinned,
                    "is_busy": resident.is_busy,
                }
                for resident in self.would_go
            ],
            **({} if self.cause is None else {"cause": self.cause}),
        }

    def refusal(self) -> InsufficientMemory:
        """Return the error for a model that can't get its memory, with the plan beside the message."""
        text = f"Model {self.model} needs {self.needs_mb} MiB"
        if self.would_go:
            names = ", ".join(f"{one.model} ({one.memory_mb} MiB)" for one in self.would_go)
            text += (
                f" and {self.free_mb} MiB are free. These would have to go, and are pinned: {names}."
                f" Unpin them: iir-agent unpin {self.would_go[0].model}"
            )
        else:
            text += (
                f", more than the {self.budget_mb} MiB that this agent may give to models. Use smaller "
                "weights or less `context`, or raise `memory_budget` in the agent's YAML file."
            )
        error = InsufficientMemory(text, headers=(("x-should-retry", "false"),))
        envelope = error_body(text, type_=error.type, code=error.code, plan=self.as_values())
        error.reshape(envelope)
        return error
