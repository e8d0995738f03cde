"""The real `mlx_lm.server`, and torch on a CPU, through agent and router, with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from local_agent.process import tree
from tests.integration import native_environment, tiny_qwen2
from tests.integration.native_environment import MLX, TORCH
from tests.integration.stack import Stack, missing, until

pytestmark = pytest.mark.integration
BOTH = [MLX, TORCH]
MESSAGES: Any = [{"role": "user", "content": "hello small world"}]
LOADED_S = 120.0
GONE_S = 30.0
MOST_PROMPT = 300
SIDE_ROUTES = "/chat/completions /v1//metrics /v1/embeddings /v1/responses /v1/messages"


class NativeStack(Stack):
    """A router and an agent that serves the tiny model by each of the engines."""

    def __init__(self, folder: Path, engines: dict[str, Path]) -> None:
        (folder / "weights").mkdir(parents=True)
        super().__init__(folder, folder / "weights")
        self.model_folder = folder / "tiny-qwen2"
        self.model_folder.mkdir()
        for name, content in tiny_qwen2.files().items():
            (self.model_folder / name).write_bytes(content)
        (self.home / "engines").mkdir()
        for name, place in engines.items():
            (self.home / "engines" / name).symlink_to(place)
        common = {"source": str(self.model_folder), "context": 1024, "parallel": 2}
        models = [
            {"id": MLX, "engine": MLX, **common},
            {
                "id": TORCH,
                "engine": TORCH,
                "options": {"max_prompt_tokens": MOST_PROMPT},
                **common,
            },
            {"id": "metal", "engine": "vllm_metal", **common},
        ]
        config = {"known_models": False, "models": models}
        (self.home / "agent" / "agent.yaml").write_text(json.dumps(config))

    def start(self) -> None:
        self.router.start()
        self.agent.start()
        for model in BOTH:
            self.until_answered(model)

    def post(self, path: str, model: str, *, base: str | None = None, **more: Any) -> Any:
        """Ask for eight greedy tokens."""
        body = {"model": model, "temperature": 0, "max_tokens": 8, **more}
        url = f"{base or self.base_url}{path}"
        return httpx.post(url, json=body, trust_env=False, timeout=90)

    def chat(self, model: str, **more: Any) -> Any:
        return self.post("/chat/completions", model, **{"messages": MESSAGES, **more})

    def until_answered(self, model: str) -> float:
        def answers() -> bool:
            answer = self.chat(model)
            assert answer.status_code in {200, 404, 502, 503}, answer.text
            return bool(answer.status_code == 200)

        return until(answers, LOADED_S, f"{model} answers", every_s=0.5)

    def row(self, model: str) -> dict[str, Any]:
        rows = httpx.get(f"{self.agent.url}/internal/workers", trust_env=False).json()
        return next(row for row in rows if row["model"] == model)

    def engine_processes(self) -> list[psutil.Process]:
        """Return what lives of the engines, whoever started it: it runs beside its model."""
        return [process for process in psutil.process_iter() if self._is_beside_model(process)]

    def _is_beside_model(self, process: psutil.Process) -> bool:
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            is_there = process.cwd() == str(self.model_folder.parent.resolve())
            return is_alive and is_there and "runpy" in " ".join(process.cmdline())
        except psutil.Error:
            return False

    def close(self) -> None:
        super().close()
        for process in self.engine_processes():
            process.kill()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeStack]:
    """Run both for all tests."""
    engines = native_environment.folders()
    if set(engines) != set(BOTH):
        missing("the native engines: python -m tests.integration.native_environment")
    stack = NativeStack(tmp_path_factory.mktemp("native"), engines)
    try:
        stack.start()
        yield stack
    finally:
        stack.close()


def client(native: NativeStack) -> openai.OpenAI:
    return openai.OpenAI(base_url=native.base_url, api_key="sk-any", max_retries=0)


def test_both_engines_say_the_same_by_both_ways(native: NativeStack) -> None:
    texts = set()
    for model in BOTH:
        for base in (native.base_url, f"{native.agent.url}/v1"):
            found = native.chat(model, base=base)
            assert found.status_code == 200, found.text
            answer = found.json()
            assert answer["model"] == model  # neither a path nor `default_model`
            assert answer["usage"]["completion_tokens"] == 8
            assert answer["choices"][0]["finish_reason"] == "length"
            texts.add(answer["choices"][0]["message"]["content"])
    (text,) = texts
    assert len(text) == 8
    assert text.isprintable()


@pytest.mark.parametrize("model", BOTH)
def test_it_streams_chats_and_completions_with_usage(native: NativeStack, model: str) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    with client(native) as ask:
        chunks: list[Any] = list(
            ask.chat.completions.create(
                model=model, messages=MESSAGES, temperature=0, max_tokens=16, **options
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert len(text) == 16
        assert {chunk.model for chunk in chunks} == {model}
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 16
        pieces: list[Any] = list(
            ask.completions.create(
                model=model, prompt="hello", temperature=0, max_tokens=5, **options
            )
        )
        assert len("".join(piece.choices[0].text for piece in pieces if piece.choices)) == 5
        assert pieces[-1].usage.prompt_tokens == 5
        assert {piece.object for piece in pieces} == {"text_completion"}


@pytest.mark.parametrize("model", BOTH)
def test_a_stop_string_ends_the_text_before_it(native: NativeStack, model: str) -> None:
    whole = native.chat(model, max_tokens=12).json()["choices"][0]["message"]["content"]
    stop = whole[6]
    cut = native.chat(model, max_tokens=12, stop=[stop]).json()["choices"][0]
    assert cut["finish_reason"] == "stop"
    assert cut["message"]["content"] == whole[: whole.index(stop)]


@pytest.mark.parametrize("model", BOTH)
def test_what_is_wrong_is_said_and_names_no_folder(native: NativeStack, model: str) -> None:
    wrong: list[dict[str, Any]] = [
        {"max_tokens": -4},
        {"messages": None},
        {"temperature": "hot"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": HOSTS}]}]},
    ]
    for each in wrong:
        found = native.chat(model, **each)
        assert found.status_code == 400, (each, found.text)
        assert found.json()["error"]["type"] == "invalid_request_error"
        assert str(native.home.parent) not in found.text


HOSTS = {"url": "http://127.0.0.1:9/picture.png"}


def test_no_request_makes_mlx_load_anything_else(native: NativeStack) -> None:
    plain = native.chat(MLX).json()["choices"]
    for field in ("adapters", "draft_model"):
        other = native.chat(MLX, **{field: str(native.home)})
        assert other.json()["choices"] == plain
    assert native.row(MLX)["state"] == "ready"


def test_torch_refuses_a_prompt_at_which_mps_would_stall(native: NativeStack) -> None:
    for stream in (False, True):
        found = native.post("/completions", TORCH, prompt="w" * (MOST_PROMPT + 1), stream=stream)
        assert found.status_code == 400
        error = found.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert f"has {MOST_PROMPT + 1} tokens" in error["message"]
    assert native.post("/completions", TORCH, prompt="w" * MOST_PROMPT).status_code == 200


@pytest.mark.parametrize("model", BOTH)
def test_a_client_that_leaves_makes_room(native: NativeStack, model: str) -> None:
    body = {"model": model, "messages": MESSAGES, "max_tokens": 900, "stream": True}
    url = f"{native.base_url}/chat/completions"
    for _ in range(3):
        with httpx.stream("POST", url, json=body, trust_env=False, timeout=60) as response:
            next(response.iter_lines())
    assert native.chat(model).status_code == 200
    until(lambda: native.row(model)["running"] == 0, GONE_S, "nothing is generated")


def test_an_engine_of_another_platform_is_refused_with_its_reason(native: NativeStack) -> None:
    row = native.row("metal")
    assert row["state"] == "unavailable"
    assert "runs on Apple Silicon only" in row["reason"]


def test_no_side_route_is_reachable_and_loopback_is_all(native: NativeStack) -> None:
    for base in (native.router.url, native.agent.url):
        for path in SIDE_ROUTES.split():
            url = httpx.URL(base).copy_with(raw_path=path.encode())
            for method in ("GET", "POST"):
                body = {"model": TORCH, "input": "x"} if method == "POST" else None
                found = httpx.request(method, url, json=body, trust_env=False, timeout=10)
                assert found.status_code in {400, 404, 405}, (method, path)
        assert "iir_torch" not in httpx.get(f"{base}/metrics", trust_env=False).text
    for model in BOTH:
        listening = {
            connection.laddr.ip
            for process in tree.members(native.row(model)["pid"])
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}


def test_a_killed_worker_comes_back_and_a_killed_agent_s_is_taken_over(native: NativeStack) -> None:
    for model in BOTH:
        psutil.Process(native.row(model)["pid"]).kill()
        native.until_answered(model)
    before = {model: native.row(model)["pid"] for model in BOTH}
    native.agent.kill()
    native.agent.start()
    for model in BOTH:
        native.until_answered(model)
    assert {model: native.row(model)["pid"] for model in BOTH} == before


def test_the_agent_leaves_nothing_and_tells_nothing(native: NativeStack) -> None:
    native.agent.terminate()
    until(lambda: not native.engine_processes(), GONE_S, "no process is left")
    for name, text in native.texts().items():
        assert MESSAGES[0]["content"] not in text, name
        assert str(native.model_folder) not in text, name
