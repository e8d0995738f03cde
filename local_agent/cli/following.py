"""Watches a pull that the running agent carries; Ctrl-C stops it, as it stops a pull of one's own."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any
from urllib.parse import quote

import httpx

from local_agent.cli.running import AgentRefused, AgentUnreachable, said
from local_agent.domain import ModelId
from local_agent.local_http import local_client
from local_agent.pulls.jobs import JobState
from local_agent.pulls.puller import Pulled
from local_agent.weights.progress import OnProgress, Phase, Progress

# a job that waits for others says nothing for as long as it takes
_TIMEOUT = httpx.Timeout(30.0, read=None)
_GONE = "the agent went away during the pull; the same command goes on where it was"


class Stopped(Exception):
    """Somebody wanted the pull to end, and it has."""


def pull_by_agent(base_url: str, model: ModelId, on_progress: OnProgress) -> Pulled:
    """Make the agent pull a model, or join its pull, and return what that gave.

    Args:
        base_url: the agent's.
        model: id of the model.
        on_progress: called as the agent tells, about four times a second.

    Raises:
        AgentRefused: it can't, or the pull failed; in the agent's words.
        AgentUnreachable: it went away.
        Stopped: by a signal; the agent's pull has been stopped.
    """
    url = f"{base_url}/internal/models/{quote(model)}/pull"
    with local_client(_TIMEOUT) as client:
        try:
            with _signals_interrupt():
                return _result(_last(client, url, on_progress))
        except KeyboardInterrupt:
            with contextlib.suppress(httpx.HTTPError):
                client.delete(url)
            raise Stopped from None
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise AgentUnreachable(_GONE) from error


def _last(client: httpx.Client, url: str, on_progress: OnProgress) -> dict[str, Any]:
    """Follow the job, and return its end."""
    answer = client.post(url, json={})
    if not answer.is_success:
        raise AgentRefused(said(answer))
    view: dict[str, Any] = {}
    with client.stream("GET", url) as events:
        for line in events.iter_lines():
            if not line.startswith("data: "):
                continue
            view = json.loads(line.removeprefix("data: "))
            if view.get("phase"):
                on_progress(_progress(view))
    return view


def _progress(view: dict[str, Any]) -> Progress:
    return Progress(
        phase=Phase(view["phase"]),
        source=view["source"],
        bytes_done=view["bytes_done"],
        bytes_total=view["bytes_total"],
        rate_bps=view["rate_bps"],
        eta_s=view["eta_s"],
    )


def _result(view: dict[str, Any]) -> Pulled:
    state = view.get("state")
    if state == JobState.DONE.value:
        return Pulled(**view["result"])
    if state in {JobState.FAILED.value, JobState.CANCELLED.value}:
        raise AgentRefused(str(view["error"]))
    raise AgentUnreachable(_GONE)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
