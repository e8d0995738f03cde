"""The torch worker's program, with a model that a test drives: text, refusals, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import anyio
import pytest

from local_agent.programs.iir_torch.asking import ask_of
from local_agent.programs.iir_torch.generation import Line, Sink, StopText
from local_agent.programs.iir_torch.serving import Server
from local_agent.programs.iir_torch.words import Ask, Done, Job, Limits, Refused

LIMITS = Limits(context=20, prompt=12)
WAIT_S = 30


class FakeModel:
    """One token per character; says `text` and then waits to be stopped, if it `lingers`."""

    def __init__(self, text: str = "abc", *, lingers: bool = False, breaks: bool = False) -> None:
        self.text, self.lingers, self.breaks = text, lingers, breaks
        self.asks: list[Ask] = []
        self.begun = threading.Event()
        self.stopped = threading.Event()

    def encode(self, text: str) -> list[int]:
        return [ord(each) for each in text]

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))

    def run(self, job: Job) -> Done:
        self.asks.append(job.ask)
        if self.breaks:
            raise RuntimeError("MPS backend out of memory: /home/somebody")
        for each in self.text:
            job.put(each)
        self.begun.set()
        if self.lingers and job.left.wait(WAIT_S):
            self.stopped.set()
        return Done("stop", len(self.text))


class Client:
    """One request; what is answered is collected."""

    def __init__(self, path: str, body: object = None, method: str = "POST") -> None:
        self.scope = {"type": "http", "method": method, "path": path}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._messages = [{"type": "http.request", "body": data, "more_body": False}]
        self.status = 0
        self.body = b""
        self.has_left = asyncio.Event()
        self.got = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")
        if b"data: " in self.body:
            self.got.set()

    async def ask(self, server: Server) -> Client:
        with anyio.fail_after(WAIT_S):
            await server(self.scope, self.receive, self.send)
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def server_of(model: Any) -> Server:
    return Server("org/m", Line(model), model, LIMITS)


async def test_a_completion_has_text_usage_and_the_model_s_own_name() -> None:
    server = server_of(FakeModel())
    found = await Client("/v1/completions", {"prompt": "hi", "max_tokens": 3}).ask(server)
    assert found.status == 200
    choice = {"index": 0, "text": "abc", "logprobs": None, "finish_reason": "stop"}
    assert found.json["choices"] == [choice]
    assert found.json["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert (found.json["model"], found.json["object"]) == ("org/m", "text_completion")


async def test_a_chat_streams_role_text_end_and_usage() -> None:
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found = await Client("/v1/chat/completions", body).ask(server_of(FakeModel("ab")))
    lines = found.body.decode().strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {},
    ]
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 4)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_generation(stream: bool) -> None:
    model = FakeModel(lingers=True)
    server = server_of(model)
    client = Client("/v1/completions", {"prompt": "hi", "stream": stream})
    async with anyio.create_task_group() as group:
        group.start_soon(client.ask, server)
        assert await asyncio.to_thread(model.begun.wait, WAIT_S)
        client.has_left.set()
    assert await asyncio.to_thread(model.stopped.wait, WAIT_S)
    model.lingers = False
    again = await Client("/v1/completions", {"prompt": "hi"}).ask(server)
    assert again.json["choices"][0]["text"] == "abc"


async def test_one_that_left_while_it_waited_is_never_generated_for() -> None:
    model = FakeModel(lingers=True)
    server = server_of(model)
    first = Client("/v1/completions", {"prompt": "one", "stream": True})
    second = Client("/v1/completions", {"prompt": "two"})
    async with anyio.create_task_group() as group:
        group.start_soon(first.ask, server)
        with anyio.fail_after(WAIT_S):
            await first.got.wait()
        group.start_soon(second.ask, server)
        with anyio.fail_after(WAIT_S):
            while b"waiting 1" not in (await Client("/metrics", method="GET").ask(server)).body:
                await anyio.lowlevel.checkpoint()
        second.has_left.set()
        first.has_left.set()
    model.lingers = False
    await Client("/v1/completions", {"prompt": "xyz"}).ask(server)
    assert [len(ask.ids) for ask in model.asks] == [3, 3]
    assert model.asks[-1].ids == model.encode("xyz")


@pytest.mark.parametrize("stream", [True, False])
async def test_what_breaks_is_a_500_without_details_and_the_next_one_is_served(
    stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = FakeModel(breaks=True)
    server = server_of(model)
    found = await Client("/v1/completions", {"prompt": "hi", "stream": stream}).ask(server)
    assert (found.status, found.json["error"]["type"]) == (500, "server_error")
    assert "/home" not in found.body.decode() + capsys.readouterr().err
    model.breaks = False
    assert (await Client("/v1/completions", {"prompt": "hi"}).ask(server)).status == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"[1]", "must be a JSON object"),
        ({}, "`prompt` must be one text"),
        ({"prompt": ["a", "b"]}, "`prompt` must be one text"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "w" * 13}, "has 13 tokens, and this engine takes at most 12"),
        ({"prompt": "a", "max_tokens": 0}, "`max_tokens` must be a number"),
        ({"prompt": "a", "max_tokens": True}, "`max_tokens` must be a number"),
        ({"prompt": "a", "temperature": 3}, "`temperature` must be a number"),
        ({"prompt": "a", "temperature": "hot"}, "`temperature` must be a number"),
        ({"prompt": "a", "stop": [""]}, "`stop` must be"),
        ({"prompt": "a", "n": 2}, "does not know `n`"),
        ({"prompt": "a", "n": [1]}, "does not know `n`"),
        ({"prompt": "a", "logprobs": 2}, "does not know `logprobs`"),
        ({"prompt": "a", "tools": [{"type": "function"}]}, "does not know `tools`"),
        ({"prompt": "a", "response_format": {"type": "json_object"}}, "`response_format`"),
    ],
)
async def test_what_can_not_be_served_is_refused(body: object, words: str) -> None:
    found = await Client("/v1/completions", body).ask(server_of(FakeModel()))
    assert found.status == 400
    assert words in found.json["error"]["message"]


async def test_what_is_there_beside_inference() -> None:
    server = server_of(FakeModel())
    assert (await Client("/health", method="GET").ask(server)).status == 200
    listed = await Client("/v1/models", method="GET").ask(server)
    assert [model["id"] for model in listed.json["data"]] == ["org/m"]
    assert (await Client("/v1/embeddings", {}).ask(server)).status == 404


def test_the_answer_has_the_room_that_the_context_leaves() -> None:
    model = FakeModel()
    chat = {"messages": [{"role": "user", "content": "w" * 12}]}
    assert ask_of(chat, model, LIMITS, is_chat=True).max_tokens == 8
    assert ask_of({**chat, "max_tokens": 5}, model, LIMITS, is_chat=True).max_tokens == 5
    named = {**chat, "max_tokens": 5, "max_completion_tokens": 3}
    assert ask_of(named, model, LIMITS, is_chat=True).max_tokens == 3
    assert ask_of({"prompt": "hi"}, model, LIMITS, is_chat=False).max_tokens == 16
    with pytest.raises(Refused, match="takes text only"):
        ask_of(
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            model,
            LIMITS,
            is_chat=True,
        )


class Tokens:
    """What torch hands over: numbers in a tensor."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = list(numbers)

    def reshape(self, _size: int) -> Tokens:
        return self

    def tolist(self) -> list[int]:
        return self._numbers


def said(tokens: list[int], *stops: str, most: int = 100) -> tuple[str, Done, bool]:
    """Return what becomes of UTF-8's bytes as tokens."""
    texts: list[Any] = []
    job = Job(Ask(ids=[1], max_tokens=most, stops=stops), texts.append)
    sink = Sink(job, lambda ids: bytes(ids).decode(errors="replace"))
    sink.put(Tokens(1))  # the prompt comes first
    for token in tokens:
        sink.put(Tokens(token))
        if sink.is_over():
            break
    done = sink.finish()
    return "".join(texts), done, sink.is_over()


def test_a_character_of_several_tokens_comes_whole() -> None:
    assert said(list("né 🙂!".encode())) == ("né 🙂!", Done("stop", 9), False)


def test_a_stop_string_over_several_tokens_is_cut_off_and_ends_it() -> None:
    assert said(list(b"one STOP two"), "STOP") == ("one ", Done("stop", 8), True)


def test_what_only_begins_like_a_stop_string_is_said() -> None:
    assert said(list(b"one STO"), "STOP", most=7) == ("one STO", Done("length", 7), False)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_stop_string_is_found_however_the_text_is_cut(size: int) -> None:
    text = "aab aabX rest"
    stop = StopText(["aabX"])
    parts = [stop.take(text[at : at + size]) for at in range(0, len(text), size)]
    assert "".join(parts).startswith("aab ")
    assert stop.is_met
