"""The embedded model through router and agent, by OpenAI's Responses and Anthropic's Messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.integration.stack import ANSWER, MESSAGES, MODEL, QUESTION, Stack, until

pytestmark = pytest.mark.integration
KEY = "sk-anything"
ASKED: Any = {"model": "default", "messages": MESSAGES}
COLD: Any = {"extra_body": {"temperature": 0}, **ASKED}  # its SDK has no word for it
LONG = "word " * 20_000


@contextmanager
def of_openai(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stack.base_url, api_key=KEY, max_retries=0) as client:
        yield client


@contextmanager
def of_anthropic(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=stack.router.url, api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_s_sdk_creates_responses(served: Stack) -> None:
    with of_openai(served) as client:
        for model in ("default", MODEL):
            raw = client.responses.with_raw_response.create(
                model=model, input=QUESTION, temperature=0, max_output_tokens=40
            )
            response = raw.parse()
            assert response.output_text == ANSWER
            assert response.status == "completed"
            assert response.usage is not None
            assert response.usage.output_tokens > 5
            assert raw.headers["x-iir-model"] == MODEL
            assert raw.headers["x-request-id"]
        told = client.responses.create(
            model="default", instructions="Be brief.", input=MESSAGES, temperature=0
        )
        assert "Paris" in told.output_text


def test_openai_s_sdk_streams_responses(served: Stack) -> None:
    with of_openai(served) as client:
        stream = client.responses.create(
            model="default", input=QUESTION, temperature=0, stream=True
        )
        events = list(stream)
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == ANSWER
    assert len(texts) > 5
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


def test_errors_of_responses_have_their_classes(served: Stack) -> None:
    with of_openai(served) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.responses.create(model="nobody", input=QUESTION)
        assert unknown.value.code == "model_not_found"
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as too_long:
                client.responses.create(model="default", input=LONG, stream=stream)
            assert "context" in too_long.value.message
            assert too_long.value.request_id


def test_anthropic_s_sdk_creates_messages(served: Stack) -> None:
    with of_anthropic(served) as client:
        message = client.messages.create(max_tokens=40, **COLD)
        (block,) = message.content
        assert block.text == ANSWER
        assert message.stop_reason == "end_turn"
        assert message.usage.output_tokens > 5
        assert message._request_id
        short = client.messages.create(max_tokens=3, system="Be brief.", **COLD)
        assert short.stop_reason == "max_tokens"


def test_anthropic_s_sdk_streams_messages(served: Stack) -> None:
    with (
        of_anthropic(served) as client,
        client.messages.stream(max_tokens=40, **COLD) as stream,
    ):
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(texts) == ANSWER
    assert len(texts) > 5
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens > 5


def test_anthropic_s_sdk_counts_tokens(served: Stack) -> None:
    with of_anthropic(served) as client:
        counted = client.messages.count_tokens(**ASKED)
        message = client.messages.create(max_tokens=1, **COLD)
        usage = message.usage
        read = usage.cache_read_input_tokens or 0
        assert counted.input_tokens == usage.input_tokens + read


def test_errors_of_messages_have_their_classes(served: Stack) -> None:
    with of_anthropic(served) as client:
        asks: list[Any] = [
            lambda **more: client.messages.create(max_tokens=5, **more),
            lambda **more: client.messages.create(max_tokens=5, stream=True, **more),
            client.messages.count_tokens,
        ]
        for ask in asks:
            with pytest.raises(anthropic.NotFoundError) as unknown:
                ask(model="nobody", messages=MESSAGES)
            assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
            with pytest.raises(anthropic.NotFoundError) as absent:
                ask(model="local_mistral-7b-instruct-q4", messages=MESSAGES)
            assert "iir-agent pull local_mistral-7b-instruct-q4" in absent.value.message
        for ask in asks[:2]:
            with pytest.raises(anthropic.BadRequestError) as too_long:
                ask(model="default", messages=[{"role": "user", "content": LONG}])
            assert "context" in too_long.value.message
            assert too_long.value.request_id


def test_both_sdks_speak_to_the_agent_alone(served: Stack) -> None:
    url = served.agent.url
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        response = client.responses.create(model="default", input=QUESTION, temperature=0)
        assert response.output_text == ANSWER
    with (
        anthropic.Anthropic(base_url=url, api_key=KEY) as other,
        other.messages.stream(max_tokens=40, **COLD) as stream,
    ):
        assert stream.get_final_text() == ANSWER


def test_the_routes_without_v1(served: Stack) -> None:
    for url in (served.router.url, served.agent.url):
        body = {**ASKED, "max_tokens": 40, "temperature": 0}
        answer = httpx.post(f"{url}/messages", json=body, trust_env=False, timeout=60)
        assert answer.json()["content"][0]["text"] == ANSWER
        asked = {"model": "default", "input": QUESTION, "temperature": 0}
        answer = httpx.post(f"{url}/responses", json=asked, trust_env=False, timeout=60)
        assert answer.status_code == 200


def test_the_ledger_counts_them(served: Stack) -> None:
    def counted() -> dict[str, Any]:
        report = json.loads(served.run("router", "usage", "--since", since, "--json"))
        total: dict[str, Any] = report["total"]
        return total

    with of_openai(served) as client, of_anthropic(served) as other:
        since = datetime.now(timezone.utc).isoformat()  # the stack has other tests' rows as well
        assert counted()["requests"] == 0
        response = client.responses.create(model="default", input=QUESTION, max_output_tokens=5)
        message = other.messages.create(max_tokens=5, **ASKED)
    assert response.usage is not None
    until(lambda: counted()["requests"] == 2, 10, "usage is written")
    total = counted()
    assert total["failed"] == 0
    # Anthropic counts what came from the engine's cache apart from the rest of the input
    of_message = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert total["input_tokens"] == response.usage.input_tokens + of_message
    assert total["output_tokens"] == response.usage.output_tokens + message.usage.output_tokens


def test_a_worker_killed_under_a_stream_raises_in_both_sdks(stack: Stack) -> None:
    endless = {"ignore_eos": True, "temperature": 0}
    with of_openai(stack) as client:
        stream = client.responses.create(
            model="default",
            input=QUESTION,
            stream=True,
            max_output_tokens=2000,
            extra_body=endless,
        )
        with pytest.raises(openai.APIError):
            for number, _event in enumerate(stream):
                if number == 5:
                    stack.worker().kill()
    stack.until_served(30)
    with (
        of_anthropic(stack) as other,
        pytest.raises(anthropic.APIStatusError),
        other.messages.stream(max_tokens=2000, extra_body=endless, **ASKED) as message,
    ):
        kill_at_the_fifth(message.text_stream, stack)


def kill_at_the_fifth(events: Iterable[object], stack: Stack) -> None:
    seen = 0
    for seen, _event in enumerate(events, start=1):
        if seen == 5:
            stack.worker().kill()
    pytest.fail(f"it ended as if nothing had happened, after {seen} events")


def test_a_client_that_waits_gets_comments(stack: Stack) -> None:
    """The router's own or the agent's own, never both."""
    stack.agent.terminate()
    stack.router.terminate()
    stack.env["ROUTER_KEEP_ALIVE_S"] = stack.env["AGENT_KEEP_ALIVE_S"] = "0.01"
    stack.router.start()
    stack.agent.start()
    lease = f"{stack.agent.url}/readyz"
    until(lambda: httpx.get(lease, trust_env=False).json()["lease"] == "held", 15, "a lease")
    body = {**ASKED, "max_tokens": 40, "temperature": 0, "stream": True}
    for url in (stack.router.url, stack.agent.url):
        answer = httpx.post(f"{url}/v1/messages", json=body, trust_env=False, timeout=60)
        assert answer.status_code == 200
        assert answer.text.rstrip().endswith('{"type":"message_stop"}')
        events = [event for event in answer.text.split("\n\n") if event]
        comments = [event for event in events if event.startswith(":")]
        assert comments
        assert events[: len(comments)] == comments  # none in the midst of the answer
