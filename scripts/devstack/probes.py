"""Questions to the running services, over HTTP on loopback. No proxy settings apply."""

from __future__ import annotations

import asyncio
import http.client
import json
from urllib.parse import urlsplit

TIMEOUT_S = 2.0


async def get(url: str) -> tuple[int, object]:
    """Return status and decoded JSON body; status 0 if nobody answers."""
    return await asyncio.to_thread(_get, url)


def _get(url: str) -> tuple[int, object]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, None


def model_status(listing: object, model: str) -> str:
    """Return a model's `status.value` in an agent's answer to `/v1/models`; `absent` if not there."""
    for entry in _list(_field(listing, "data")):
        if _field(entry, "id") == model:
            return str(_field(_field(entry, "status"), "value"))
    return "absent"


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
