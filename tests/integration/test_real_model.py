"""The embedded model through router and agent, with OpenAI's Python SDK."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from tests.integration.stack import ANSWER, MESSAGES, MODEL, QUESTION, Stack, until

pytestmark = pytest.mark.integration
KEY = "sk-anything"


def sdk(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=stack.base_url, api_key=KEY, max_retries=0)


def is_let_in(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return False
    return True


def test_it_knows_the_capital_of_france(served: Stack) -> None:
    with sdk(served) as client:
        for model in ("default", MODEL):
            chat = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0)
            assert chat.choices[0].message.content == ANSWER
            assert chat.choices[0].finish_reason == "stop"
            assert chat.usage is not None
            assert chat.usage.completion_tokens > 5


def test_it_streams(served: Stack) -> None:
    options = {"include_usage": True}
    with sdk(served) as client:
        stream = client.chat.completions.create(
            model="default", messages=MESSAGES, temperature=0, stream=True, stream_options=options
        )  # type: ignore[call-overload] # a plain dict is what users write
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ANSWER
    assert len(chunks) > 5
    assert chunks[-1].usage.completion_tokens > 5
    assert len({chunk.id for chunk in chunks}) == 1


def test_raw_and_streaming_responses_show_the_headers(served: Stack) -> None:
    with sdk(served) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="default", messages=MESSAGES, temperature=0
        )
        assert raw.parse().choices[0].message.content == ANSWER
        assert raw.headers["x-request-id"]
        assert raw.headers["x-iir-model"] == MODEL
        assert raw.headers["x-iir-zone"] == "local"
        with client.chat.completions.with_streaming_response.create(
            model="default", messages=MESSAGES, temperature=0, stream=True
        ) as response:
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"


async def test_the_async_client_does_it_all_at_once(served: Stack) -> None:
    async with openai.AsyncOpenAI(base_url=served.base_url, api_key=KEY) as client:
        stream = await client.chat.completions.create(
            model="default", messages=MESSAGES, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text == ANSWER
        chat = await client.chat.completions.create(
            model="default", messages=MESSAGES, temperature=0
        )
        assert chat.choices[0].message.content == ANSWER
        assert MODEL in {model.id async for model in client.models.list()}


def test_it_completes_and_embeds(served: Stack) -> None:
    with sdk(served) as client:
        text = client.completions.create(
            model="default", prompt="The capital of France is", max_tokens=8, temperature=0
        )
        assert "Paris" in text.choices[0].text
        embedded = client.embeddings.create(model="default", input=["Paris", "a banana"])
        assert [len(item.embedding) for item in embedded.data] == [576, 576]
        assert embedded.data[0].embedding != embedded.data[1].embedding


def test_errors_have_their_classes(served: Stack) -> None:
    with sdk(served) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="nobody", messages=MESSAGES)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError) as absent:
            client.chat.completions.create(model="local_mistral-7b-instruct-q4", messages=MESSAGES)
        assert absent.value.code == "model_not_pulled"
        assert "iir-agent pull local_mistral-7b-instruct-q4" in absent.value.message
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="default", messages="hello")  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError) as too_long:
            client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": "word " * 20_000}]
            )
        assert too_long.value.request_id


def test_the_agent_answers_by_itself(served: Stack) -> None:
    body = {"prompt": QUESTION, "temperature": 0}
    answer = httpx.post(f"{served.agent.url}/infer", json=body, trust_env=False, timeout=60).json()
    assert answer["text"] == ANSWER
    assert answer["model"] == MODEL
    with httpx.stream(
        "POST", f"{served.agent.url}/infer", json={**body, "stream": True}, timeout=60
    ) as response:
        events = [line[6:] for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    assert "".join(json.loads(event)["text"] for event in events) == ANSWER
    assert json.loads(events[-1])["finish_reason"] == "stop"


def test_the_commands_list_what_is_there(served: Stack) -> None:
    assert MODEL in served.run("router", "models", "list")
    assert MODEL in served.run("router", "models", "list", "--json")
    (worker,) = json.loads(served.run("local_agent", "ps", "--json"))[:1]
    assert (worker["model"], worker["state"]) == (MODEL, "ready")
    assert "local_mistral-7b-instruct-q4" in served.run("local_agent", "ls")
    agents = served.run("router", "agents", "list")
    assert "mac" in agents


def test_a_key_ends_open_mode_within_a_second_and_works(stack: Stack) -> None:
    key = stack.run("router", "keys", "create", "--name", "me", "--quiet").strip()
    with sdk(stack) as client:
        until(lambda: not is_let_in(client), 1.0, "open mode ends")
    with openai.OpenAI(base_url=stack.base_url, api_key=key) as client:
        chat = client.chat.completions.create(model="default", messages=MESSAGES, temperature=0)
        assert chat.choices[0].message.content == ANSWER
    assert all(key not in text for text in stack.texts().values())
