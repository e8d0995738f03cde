"""What a request hears when its model can't serve now. Pure."""

from __future__ import annotations

from local_agent.catalog import Entry
from local_agent.domain import ModelId, WorkerState, WorkerStatus
from local_agent.errors import ModelOnItsWay, ModelUnavailable, WorkerGone
from local_agent.weights.progress import Progress, numbers, shown
from shared.http.errors import (
    ApiError,
    ModelNotFound,
    ModelNotPulled,
    QueueFull,
    QueueTimeout,
    error_body,
)

_EXTERNAL_RETRY_S = 5.0
_STOPPING_RETRY_S = 5.0
_MOST_RETRY_S = 60.0
_NO_RETRY = (("x-should-retry", "false"),)
"""Tells OpenAI's SDKs that another try won't help."""


def unknown(model: str) -> ModelNotFound:
    """Return the error for an id that nobody knows."""
    return ModelNotFound(f"the agent has no model {model!r}; `iir-agent ls` lists its models")


def stopping() -> ModelUnavailable:
    """Return the error for requests that come while the agent ends."""
    return ModelUnavailable("the agent is stopping", retry_after_s=_STOPPING_RETRY_S)


def loading(model: ModelId, elapsed_s: float, expected_s: float) -> ModelOnItsWay:
    """Return the error for a model that needs longer than the caller waits.

    Args:
        model: its id.
        elapsed_s: since when it loads.
        expected_s: how long a load takes, as far as it is known.
    """
    text = f"model {model} is loading, for {elapsed_s:.0f} s so far; try again soon"
    return _on_its_way(text, "loading", elapsed_s, expected_s)


def waiting(
    model: ModelId, elapsed_s: float, expected_s: float, cause: str | None = None
) -> ModelOnItsWay:
    """Return the error for a model that waits for the memory of others, for too long for the caller.

    Like `loading`; `elapsed_s` is since when it waits, `cause` says that the machine has no room.
    """
    text = (
        f"model {model} waits until other models have made room; try again soon, or see"
        f" `iir-agent plan {model}`"
    )
    if cause is not None:
        text = f"model {model} waits for memory: {cause}, or try again later"
    return _on_its_way(text, "waiting", elapsed_s, expected_s)


def _on_its_way(text: str, phase: str, elapsed_s: float, expected_s: float) -> ModelOnItsWay:
    """Return the error with the progress beside its message."""
    is_loading = phase == "loading"
    left_s = expected_s - elapsed_s if is_loading else expected_s
    error = ModelOnItsWay(text, retry_after_s=max(1.0, left_s))
    progress = {
        "phase": phase,
        "elapsed_s": round(elapsed_s, 1),
        "expected_s": round(expected_s, 1),
        "fraction": round(min(1.0, elapsed_s / max(expected_s, 0.1)), 2) if is_loading else 0.0,
    }
    error.reshape(error_body(text, type_=error.type, code=error.code, progress=progress))
    return error


def pulling(model: ModelId, progress: Progress | None) -> ModelNotPulled:
    """Return the error for a model that is being pulled.

    Args:
        model: its id.
        progress: how far that is; None while it waits for other pulls.
    """
    far = "its pull waits for others"
    if progress is not None:
        far = ", ".join((progress.phase.value, *numbers(progress)))
    text = f"model {model} is being pulled ({far}); ask again when that is done"
    error = ModelNotPulled(text)
    values = None if progress is None else shown(progress)
    error.reshape(error_body(text, type_=error.type, code=error.code, progress=values))
    return error


def busy(model: ModelId, expected_s: float) -> QueueTimeout:
    """Return the error for who waited for a slot for too long, or would not wait.

    `expected_s` is how long the next one would wait.
    """
    return QueueTimeout(
        f"all slots of model {model} are taken, and none came free in time; try again later",
        retry_after_s=_retry_s(expected_s),
    )


def full(model: ModelId, waiting: int, expected_s: float) -> QueueFull:
    """Return the error for who comes when as many wait as may; `expected_s` as for `busy`."""
    return QueueFull(
        f"{waiting} requests wait for model {model} already, as many as may (`max_queue` in the"
        " agent's YAML file); try again later",
        retry_after_s=_retry_s(expected_s),
    )


def _retry_s(expected_s: float) -> float:
    return max(1.0, min(expected_s, _MOST_RETRY_S))


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
