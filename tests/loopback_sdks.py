"""The vendors' SDKs, asking a server on loopback: once each, and without reading certificates for it."""

from __future__ import annotations

from typing import Any

import anthropic
import openai


def openai_at(base_url: str, *, api_key: str = "k", **options: Any) -> openai.AsyncOpenAI:
    """Return OpenAI's SDK for a server whose API is below `/v1`."""
    return openai.AsyncOpenAI(
        http_client=openai.DefaultAsyncHttpxClient(verify=False),
        base_url=f"{base_url}/v1",
        api_key=api_key,
        max_retries=0,
        **options,
    )


def anthropic_at(base_url: str, **options: Any) -> anthropic.AsyncAnthropic:
    """Return Anthropic's SDK for a server."""
    return anthropic.AsyncAnthropic(
        http_client=anthropic.DefaultAsyncHttpxClient(verify=False),
        base_url=base_url,
        api_key="k",
        max_retries=0,
        **options,
    )
