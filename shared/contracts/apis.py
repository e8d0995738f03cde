"""The APIs that endpoints and engines may speak, and the routes of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

APIS: Final = ("chat", "completions", "embeddings", "responses", "messages")
"""The API routes that an endpoint may speak, by name."""

API_PATHS: Final = {
    "chat": ("/chat/completions",),
    "completions": ("/completions",),
    "embeddings": ("/embeddings",),
    "responses": ("/responses",),
    "messages": ("/messages", "/messages/count_tokens"),
}
"""The routes of each of `APIS`, relative to the API base. Nothing else is ever sent upstream."""

INFERENCE_PATHS: Final = tuple(path for paths in API_PATHS.values() for path in paths)
MESSAGES_PATHS: Final = frozenset(API_PATHS["messages"])
"""Where errors have Anthropic's shape."""

DEFAULT_APIS: Final = ("chat", "completions", "embeddings")
"""What an endpoint speaks unless it says otherwise."""


def paths_of(apis: Iterable[str]) -> frozenset[str]:
    """Return the routes of these APIs; a name that is not known has none."""
    return frozenset(path for api in apis for path in API_PATHS.get(api, ()))
