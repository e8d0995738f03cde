"""Talks to the agent that runs on this host, if one does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from local_agent.doctor.agent import find_running
from local_agent.local_http import local_client
from shared.contracts.agents import Power
from shared.kit.run_file import read_run_file

_TIMEOUT_S = 3.0
# The first command loads what serves commands: half a second, on a machine that is busy several.
_COMMAND_S = 15.0
_REMOVE_S = 60.0
_RELOAD_S = 30.0
# The agent's default, and where it goes when that is taken.
_USUAL_PORTS = (5000, 5055, 5056, 5057)
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}


class AgentUnreachable(Exception):
    """No agent answers here."""


class AgentRefused(Exception):
    """The agent does not do what it was told; the message is its own."""


class WorkerRow(BaseModel):
    """One worker as the agent tells it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    engine: str
    state: str
    pid: int | None = None
    in_flight: int = 0
    since_s: float = 0.0
    reason: str | None = None
    memory_mb: int = 0
    running: int = 0
    waiting: int = 0
    is_pinned: bool = False
    ttl_s: float | None = None
    expected_load_s: float = 0.0


class CapacityRow(BaseModel):
    """What the agent can take, as it tells; sizes in bytes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: str
    reason: str | None = None
    in_hand: int
    budget_bytes: int
    free_bytes: int
    evictable_bytes: int
    power: Power | None = None


class RunningAgent:
    """The agent at the first of some addresses that answers like one."""

    def __init__(self, base_urls: tuple[str, ...]) -> None:
        """Try these addresses in order, at each call anew."""
        self._base_urls = base_urls

    def base_url(self) -> str:
        """Return where the agent answers.

        Raises:
            AgentUnreachable: no agent answers.
        """
        return self._found()[0]

    def models(self) -> list[dict[str, Any]]:
        """Return the agent's models as it lists them.

        Raises:
            AgentUnreachable: no agent answers.
        """
        listed = _ask("GET", f"{self.base_url()}/v1/models")
        rows = listed.get("data") if isinstance(listed, dict) else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    def model(self, model: str) -> dict[str, Any]:
        """Return one model as the agent lists it; nothing if it does not.

        Raises:
            AgentUnreachable: no agent answers.
        """
        return next((row for row in self.models() if row.get("id") == model), {})

    def statuses(self) -> dict[str, str]:
        """Return the status of each model that the agent knows.

        Raises:
            AgentUnreachable: no agent answers.
        """
        return self._found()[1]

    def url_if_known(self, model: str) -> str | None:
        """Return the agent's base URL if one runs that knows the model's id, else None."""
        try:
            base_url, statuses = self._found()
        except AgentUnreachable:
            return None
        return base_url if model in statuses else None

    def workers(self) -> list[WorkerRow]:
        """Return the agent's workers.

        Raises:
            AgentUnreachable: no agent answers.
        """
        for base_url in self._base_urls:
            data = _ask("GET", f"{base_url}/internal/workers", _COMMAND_S)
            with contextlib.suppress(ValidationError):
                if isinstance(data, list):
                    return [WorkerRow.model_validate(row) for row in data]
        raise AgentUnreachable("no agent runs here: start it with `iir-agent serve`")

    def capacity(self) -> CapacityRow | None:
        """Return what the agent can take; None if none answers, or an older one."""
        for base_url in self._base_urls:
            with contextlib.suppress(ValidationError):
                told = _ask("GET", f"{base_url}/internal/capacity", _COMMAND_S)
                return CapacityRow.model_validate(told)
        return None

    def switch(self, verb: str) -> CapacityRow:
        """Make the agent `drain` or `resume`, and return what it can take then.

        Raises:
            AgentUnreachable: no agent answers.
            AgentRefused: it says why not.
        """
        answer = _told("POST", f"{self._found()[0]}/internal/{verb}", {}, _COMMAND_S)
        try:
            return CapacityRow.model_validate(answer)
        except ValidationError:
            raise AgentRefused("the agent gave an answer that can't be read") from None

    @contextlib.contextmanager
    def lines(self, path: str, params: Mapping[str, str]) -> Iterator[Iterator[str]]:
        """Enter with the lines of a streamed answer, which may come for as long as the agent lives.

        Raises:
            AgentUnreachable: no agent answers, or it ended in the middle.
            AgentRefused: it says why not.
        """
        url = f"{self._found()[0]}{path}"
        timeout = httpx.Timeout(_TIMEOUT_S, read=None)
        try:
            with (
                local_client(timeout) as client,
                client.stream("GET", url, params=params) as response,
            ):
                if not response.is_success:
                    response.read()
                    raise AgentRefused(said(response))
                yield response.iter_lines()
        except httpx.HTTPError as error:
            raise AgentUnreachable("the agent has ended") from error

    def tell(
        self,
        model: str,
        verb: str,
        values: Mapping[str, object] | None = None,
        *,
        timeout_s: float = 0.0,
    ) -> dict[str, Any]:
        """Make the agent load, unload, pin, unpin, reset or plan a model, and return what it says.

        Args:
            model: an id or alias.
            verb: what to do.
            values: the body.
            timeout_s: how long that may take beyond the usual time.

        Raises:
            AgentUnreachable: no agent answers.
            AgentRefused: it says why not.
        """
        url = f"{self._found()[0]}/internal/models/{quote(model)}/{verb}"
        return _told("POST", url, values or {}, _COMMAND_S + timeout_s)

    def remove_weights(self, model: str) -> None:
        """Make the agent remove what was pulled for a model.

        Raises:
            AgentUnreachable: no agent answers.
            AgentRefused: it says why not.
        """
        url = f"{self._found()[0]}/internal/models/{quote(model)}/weights"
        _told("DELETE", url, {}, _REMOVE_S)

    def config_problem(self) -> str | None:
        """Return why the agent does not use its newest configuration file; None if it does."""
        state = find_running(self._base_urls)
        return None if state is None or state.config == "ok" else state.config

    def take_config(self) -> dict[str, Any]:
        """Make the agent read its configuration anew, and return what changed.

        Raises:
            AgentUnreachable: no agent answers.
            AgentRefused: the file is not good; it says why.
        """
        return _told("POST", f"{self._found()[0]}/internal/reload", {}, _RELOAD_S)

    def reload(self) -> None:
        """Make the agent look at its configuration and weights again; none running is fine."""
        with contextlib.suppress(AgentUnreachable, AgentRefused):
            self.take_config()

    def _found(self) -> tuple[str, dict[str, str]]:
        """Return where an agent answers, and the status of each of its models."""
        for base_url in self._base_urls:
            statuses = _statuses(_ask("GET", f"{base_url}/v1/models"))
            if statuses is not None:
                return base_url, statuses
        raise AgentUnreachable("no agent runs here: start it with `iir-agent serve`")


def addresses(host: str, port: int | None, run_file: Path) -> tuple[str, ...]:
    """Return where the agent may be, as base URLs.

    Args:
        host: the agent's own host setting; an address that means all becomes loopback.
        port: the agent's own port setting; None or 0: not known.
        run_file: what the running agent wrote of its address, if it did.
    """
    found = None if port else read_run_file(run_file)
    if found is not None:
        host, port = found.host or host, found.port
    name = _bracketed(_ANY_ADDRESS.get(host, host))
    return tuple(f"http://{name}:{number}" for number in ((port,) if port else _USUAL_PORTS))


def _bracketed(host: str) -> str:
    with contextlib.suppress(ValueError):
        return f"[{host}]" if ip_address(host).version == 6 else host
    return host


def _ask(method: str, url: str, timeout_s: float = _TIMEOUT_S) -> Any:
    """Return the JSON of a good answer, else None. Proxies are for other hosts than this one."""
    try:
        with local_client(httpx.Timeout(timeout_s, connect=_TIMEOUT_S)) as client:
            response = client.request(method, url, json={} if method == "POST" else None)
        return response.json() if response.is_success else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return None


def _told(method: str, url: str, values: Mapping[str, object], timeout_s: float) -> dict[str, Any]:
    try:
        with local_client(timeout_s) as client:
            response = client.request(method, url, json=values)
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise AgentUnreachable("the agent did not answer in time") from error
    if not response.is_success or not isinstance(answer, dict):
        raise AgentRefused(said(response))
    return answer


def said(response: httpx.Response) -> str:
    """Return what an agent says in refusing."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = None
    return str(message or f"the agent refused: HTTP {response.status_code}")


def _statuses(data: object) -> dict[str, str] | None:
    """Read the model list of an agent; anything else (another server on the port) is None."""
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        return None
    found = {}
    for row in rows:
        status = row.get("status") if isinstance(row, dict) else None
        if not isinstance(status, dict) or not isinstance(row.get("id"), str):
            return None
        found[row["id"]] = str(status.get("value"))
    return found
