"""Asking a provider which models it has: `GET /models` of OpenAI's API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from router.cli.output import CommandFailed
from router.domain import is_model_name

if TYPE_CHECKING:
    import httpx

_MOST_BYTES = 8 * 1024 * 1024
_TIMEOUT_S = 20.0


class CredentialRefused(CommandFailed):
    """The provider answered that it does not take the credential, or wants one."""


def fetch_model_ids(
    provider: str,
    url: str,
    credential: str | None,
    *,
    limit_s: float | None = None,
    by_proxy: bool = True,
) -> list[str]:
    """Return the ids of a provider's models, in its order, each once.

    The credential goes to `url` alone: redirects are not followed.

    Args:
        provider: its name, for messages.
        url: what is asked.
        credential: if it needs one.
        limit_s: how long each step of the answer may take, in seconds, if not as usual.
        by_proxy: go by the proxies that the environment names.

    Raises:
        CredentialRefused: it does not take the credential.
        CommandFailed: no answer, or one that is no list of models.
    """
    import httpx  # noqa: PLC0415 - needed by this command alone, and slow to load

    limit_s = limit_s or _TIMEOUT_S
    headers = {"accept": "application/json"}
    if credential is not None:
        headers["authorization"] = f"Bearer {credential}"
    try:
        with (
            httpx.Client(follow_redirects=False, timeout=limit_s, trust_env=by_proxy) as client,
            client.stream("GET", url, headers=headers) as reply,
        ):
            _check_status(provider, reply.status_code)
            return _ids(provider, _bounded(provider, reply))
    except httpx.TimeoutException:
        raise CommandFailed(f"provider {provider!r} did not answer in {limit_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
        raise CommandFailed(
            f"provider {provider!r} can't be reached; check its base URL and the network"
        ) from None


def _check_status(provider: str, status: int) -> None:
    if status in {401, 403}:
        raise CredentialRefused(f"provider {provider!r} did not accept the credential ({status})")
    if 300 <= status < 400:
        raise CommandFailed(
            f"provider {provider!r} answered with a redirect, which is not followed; "
            "check its base URL"
        )
    if status != 200:
        raise CommandFailed(f"provider {provider!r} answered with status {status}")


def _bounded(provider: str, reply: httpx.Response) -> bytes:
    body = bytearray()
    for chunk in reply.iter_bytes():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise CommandFailed(f"provider {provider!r} sent too much for a list of models")
    return bytes(body)


def _ids(provider: str, body: bytes) -> list[str]:
    try:
        found = json.loads(body)["data"]
        ids = [entry["id"] for entry in found]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise CommandFailed(f"provider {provider!r} sent no list of models") from None
    return [model_id for model_id in dict.fromkeys(map(str, ids)) if is_model_name(model_id)]
