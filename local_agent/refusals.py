"""What a request hears when its model can't serve now. Pure."""

from __future__ import annotations

from local_agent.catalog import Entry
from local_agent.domain import ModelId, WorkerState, WorkerStatus
from local_agent.errors import ModelOnItsWay, ModelUnavailable, WorkerGone
from shared.http.errors import ApiError, ModelNotFound, ModelNotPulled

_LOAD_GUESS_S = 5.0
_EXTERNAL_RETRY_S = 5.0
_STOPPING_RETRY_S = 5.0
_NO_RETRY = (("x-should-retry", "false"),)
"""Tells OpenAI's SDKs that another try won't help."""


def unknown(model: str) -> ModelNotFound:
    """Return the error for an id that nobody knows."""
    return ModelNotFound(f"the agent has no model {model!r}; `iir-agent ls` lists its models")


def stopping() -> ModelUnavailable:
    """Return the error for requests that come while the agent ends."""
    return ModelUnavailable("the agent is stopping", retry_after_s=_STOPPING_RETRY_S)


def loading(model: ModelId, elapsed_s: float, load_s: float | None) -> ModelOnItsWay:
    """Return the error for a model that needs longer than the caller waits.

    Args:
        model: its id.
        elapsed_s: since when it loads.
        load_s: how long its last load took, if it is known.
    """
    return ModelOnItsWay(
        f"model {model} is loading, for {elapsed_s:.0f} s so far; try again soon",
        retry_after_s=max(1.0, (load_s or _LOAD_GUESS_S) - elapsed_s),
    )


def waiting(model: ModelId) -> ModelOnItsWay:
    """Return the error for a model that waits for the memory of others, for too long for the caller."""
    return ModelOnItsWay(
        f"model {model} waits until other models have made room; try again soon, or see"
        f" `iir-agent plan {model}`",
        retry_after_s=_LOAD_GUESS_S,
    )


def refusal(entry: Entry, status: WorkerStatus, now: float) -> ApiError | None:
    """Return why the model is not worth waiting for; None if it is.

    Args:
        entry: the model.
        status: its worker's.
        now: seconds of the agent's monotonic clock.
    """
    model = entry.deployment.model
    if not entry.is_pulled:
        return ModelNotPulled(f"model {model} is not pulled; run: {entry.pull_command}")
    if entry.problem is not None:
        return ModelUnavailable(f"model {model} can't run here: {entry.problem}", headers=_NO_RETRY)
    if status.state is WorkerState.LOADING and status.reason is not None:
        return ModelUnavailable(f"model {model}: {status.reason}", retry_after_s=_EXTERNAL_RETRY_S)
    if status.config_hash != entry.deployment.config_hash:
        return None  # what is known of it is about another configuration
    return _after_failure(model, status, now)


def _after_failure(model: str, status: WorkerStatus, now: float) -> ApiError | None:
    if status.state is WorkerState.BACKOFF and status.not_before > now:
        wait_s = status.not_before - now
        return WorkerGone(
            f"model {model} failed ({status.reason}); next start in {wait_s:.0f} s: ask again then;"
            " `iir-agent ps` shows why",
            retry_after_s=wait_s,
        )
    if status.state is WorkerState.QUARANTINED:
        return ModelUnavailable(
            f"model {model} has failed {len(status.failures)} times and is quarantined"
            f" ({status.reason}); fix the cause, then `iir-agent reset {model}`",
            headers=_NO_RETRY,
        )
    return None
