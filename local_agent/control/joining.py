"""The agent's side of joining: exchanges a token, or its present credential, for a new one.

Nothing here follows a redirect or uses a proxy: what is sent is secret.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx
from pydantic import BaseModel, Field, ValidationError

from local_agent.control.trust import failure_code
from shared.contracts.agents import CredentialGrant, JoinRequest
from shared.http.origin import is_loopback

_BASE = "/internal/v1/agents"
_TRIES = 20
_PAUSE_S = 0.25
_MOST_SHOWN = 400


class JoinFailed(Exception):
    """The router gave no credential; the message says why and what to do."""


class _Error(BaseModel):
    message: str = Field(max_length=2000)
    code: str | None = None


class _Envelope(BaseModel):
    error: _Error


class JoiningClient:
    """Asks one router."""

    def __init__(self, client: httpx.Client, sleep: Callable[[float], None]) -> None:
        """Take an HTTP client whose base URL is the router's, and what waits between tries."""
        self._client = client
        self._sleep = sleep

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def join(self, token: str, name: str, present: str | None) -> CredentialGrant:
        """Exchange a join token; `present` is the credential for this router, if there is one.

        Raises:
            JoinFailed: the router can't be asked, or refuses.
        """
        try:
            body = JoinRequest(token=token, name=name).model_dump_json()
        except ValidationError:
            raise JoinFailed("this is no join token: `iir agents invite` makes one") from None
        return self._granted(self._post("join", present, body))

    def rotate(self, present: str) -> CredentialGrant:
        """Exchange the present credential.

        Raises:
            JoinFailed: the router can't be asked, or refuses.
        """
        response = self._post("rotate", present)
        if _code(response) == "invalid_api_key":
            raise JoinFailed(
                "the router does not know this credential: it was revoked or replaced, or the router's "
                "registry is a new one. `iir agents invite` on the router's machine, then "
                "`iir-agent join`, gets another"
            )
        return self._granted(response)

    def confirm(self, credential: str) -> bool:
        """Use a new credential, which must be kept by now: the one before it ends.

        Returns:
            Whether the router took it. False: it did not answer; the agent's next message does it.
        """
        for _ in range(_TRIES):
            try:
                if self._post("confirm", credential).is_success:
                    return True
            except JoinFailed:
                pass  # it may be just starting again
            # another of the router's processes may not have heard of it yet
            self._sleep(_PAUSE_S)
        return False

    def _post(self, what: str, credential: str | None, body: str = "{}") -> httpx.Response:
        headers = {"content-type": "application/json"}
        if credential is not None:
            headers["authorization"] = f"Bearer {credential}"
        try:
            return self._client.post(f"{_BASE}/{what}", content=body, headers=headers)
        except httpx.InvalidURL:
            raise JoinFailed("the router's address is not a URL like http://HOST:8000") from None
        except httpx.HTTPError as error:
            raise JoinFailed(
                f"the router can't be reached ({_cause(error)}); nothing was changed here. Check the "
                "address, that the router runs, and that it listens on a network (ROUTER_HOST)"
            ) from None

    def _granted(self, response: httpx.Response) -> CredentialGrant:
        try:
            if response.status_code == 200:
                return CredentialGrant.model_validate_json(response.content)
        except ValidationError:
            raise JoinFailed("what answers there is no router of this release") from None
        raise JoinFailed(_refusal(response))


def travels_in_the_clear(url: str) -> bool:
    """Tell whether others on the network can read what is sent to this URL."""
    parts = httpx.URL(url)
    return parts.scheme != "https" and not is_loopback(parts.host)


def _code(response: httpx.Response) -> str | None:
    try:
        return _Envelope.model_validate_json(response.content).error.code
    except ValidationError:
        return None


def _refusal(response: httpx.Response) -> str:
    try:
        text = _Envelope.model_validate_json(response.content).error.message
    except ValidationError:
        return f"what answers there is no router (it said {response.status_code})"
    if response.status_code == 404:
        return "the router is older than this agent and takes no join tokens; upgrade it"
    shown = "".join(c for c in text if c.isprintable())[:_MOST_SHOWN]
    return f"the router said no ({response.status_code}): {shown}"


def _cause(error: httpx.HTTPError) -> str:
    return {
        "timeout": "no answer in time",
        "certificate_not_trusted": "its TLS certificate is not trusted here; if an authority of your own "
        "made it, name that authority's PEM file in ROUTER_CA_FILE",
        "no_connection": "no connection",
        "no_route": "there is no route to it",
        "connection_broke": "connection broke off",
    }[failure_code(error)]
