"""The simulated engine in the ways of vLLM, llama.cpp and OpenAI."""

from __future__ import annotations

import pytest

from shared.testing.personas import LLAMACPP, OPENAI, VLLM, Persona, persona_named
from tests.shared.simulated import CHAT, client_of, events


@pytest.mark.parametrize(
    ("persona", "status", "error"),
    [
        (VLLM, 404, {"type": "NotFoundError", "param": "model", "code": 404}),
        (OPENAI, 404, {"type": "invalid_request_error", "code": "model_not_found"}),
        (LLAMACPP, 200, {}),
    ],
)
async def test_an_unknown_model(persona: Persona, status: int, error: dict[str, object]) -> None:
    async with client_of(persona=persona) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "nope"})
    assert answer.status_code == status
    assert error.items() <= answer.json().get("error", {}).items()


@pytest.mark.parametrize(
    ("persona", "health", "version", "metrics", "role_content"),
    [
        (VLLM, b"", 200, "vllm:num_requests_running", ""),
        (LLAMACPP, b'{"status":"ok"}', 404, "llamacpp:requests_processing", None),
        (OPENAI, b"", 404, "", ""),
    ],
)
async def test_personas(
    persona: Persona, health: bytes, version: int, metrics: str, role_content: str | None
) -> None:
    async with client_of(persona=persona) as client:
        assert (await client.get("/health")).content == health
        assert (await client.get("/version")).status_code == version
        answer = await client.get("/metrics")
        assert answer.status_code == (200 if metrics else 404)
        assert metrics in answer.text
        assert (await client.get("/nope")).status_code == 404
        assert (await client.get("/v1/chat/completions")).status_code == 405
        assert (await client.head("/v1/models")).status_code == 200
        stream = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    first = events(stream.text)[0]["choices"][0]["delta"]  # type: ignore[index]
    assert first == {"role": "assistant", "content": role_content}
    with pytest.raises(LookupError, match="unknown persona 'x'; known: vllm"):
        persona_named("x")


async def test_vllm_repeats_the_request_id_and_openai_does_not() -> None:
    for persona, expected in ((VLLM, "chatcmpl-abc"), (OPENAI, "chatcmpl-sim-1")):
        async with client_of(persona=persona) as client:
            headers = {"x-request-id": "abc"}
            made = await client.post("/v1/chat/completions", json=CHAT, headers=headers)
            assert made.json()["id"] == expected


@pytest.mark.parametrize(
    ("persona", "body"),
    [
        (VLLM, {"error": "Unauthorized"}),
        (LLAMACPP, {"error": {"code": 401, "message": "Invalid API Key"}}),
        (OPENAI, {"error": {"code": "invalid_api_key"}}),
    ],
)
async def test_the_key_is_asked_for(persona: Persona, body: dict[str, object]) -> None:
    async with client_of(persona=persona, api_key="sesame") as client:
        refused = await client.post("/v1/chat/completions", json=CHAT)
        wrong = await client.get("/v1/models", headers={"authorization": "Bearer no"})
        right = await client.get("/v1/models", headers={"authorization": "Bearer sesame"})
        assert (await client.get("/health")).status_code == 200
    assert [refused.status_code, wrong.status_code, right.status_code] == [401, 401, 200]
    found, expected = refused.json()["error"], body["error"]
    if isinstance(expected, dict):
        assert expected.items() <= found.items()
    else:
        assert found == expected
