"""The embedded model with what else people use: OpenAI's npm package, and curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.snippets import snippets
from tests.integration.stack import (
    ANSWER,
    MODEL,
    QUESTION,
    ROOT,
    Stack,
    command,
    machine_environment,
    missing,
    output_of,
)

pytestmark = pytest.mark.integration
SDK = "openai@~6.49.0"


@pytest.fixture(scope="session")
def node_sdk(cache: Path) -> Path:
    """Return a folder with OpenAI's npm package, installed unless it is there."""
    folder = cache / "node"
    if not (folder / "node_modules" / "openai" / "package.json").is_file():
        folder.mkdir(exist_ok=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        arguments = ["install", "--no-audit", "--no-fund", "--ignore-scripts", SDK]
        done = subprocess.run(
            [command("npm"), *arguments],
            cwd=folder,
            env=machine_environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0:
            missing(f"the npm package {SDK}: {done.stderr[-300:]}")
    return folder


def test_openai_s_npm_package(served: Stack, node_sdk: Path) -> None:
    script = shutil.copy(Path(__file__).with_name("client.mjs"), node_sdk)
    words = [command("node"), str(script), served.base_url, QUESTION]
    found = json.loads(output_of(words, folder=node_sdk, limit_s=120))
    assert found["text"] == found["streamed"] == ANSWER
    assert found["chunks"] > 5
    assert found["hasRequestId"]
    assert MODEL in found["models"]
    assert found["dimensions"] == 576
    assert found["failure"] == {
        "isNotFound": True,
        "code": "model_not_found",
        "hasRequestId": True,
    }


def test_the_javascript_of_the_documents(served: Stack, node_sdk: Path) -> None:
    path = ROOT / "docs" / "quickstart.md"
    (found,) = [one for one in snippets(path, path.read_text()) if one.language == "javascript"]
    script = node_sdk / "quickstart.mjs"
    script.write_text(found.text.replace("http://127.0.0.1:8000/v1", served.base_url))
    said = output_of([command("node"), str(script)], folder=node_sdk, limit_s=120)
    assert said.strip() == ANSWER


def curl(*arguments: str) -> str:
    words = [command("curl"), "--silent", "--show-error", "--noproxy", "*", *arguments]
    return output_of(words, limit_s=60)


def test_curl(served: Stack) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": QUESTION}]}
    url, kind = f"{served.base_url}/chat/completions", "content-type: application/json"
    asked = json.dumps({**body, "temperature": 0})
    answer = json.loads(curl(url, "-H", kind, "-d", asked))
    assert answer["choices"][0]["message"]["content"] == ANSWER
    streamed = curl("-N", url, "-H", kind, "-d", json.dumps({**body, "stream": True}))
    assert streamed.endswith("data: [DONE]\n\n")
    head = curl("-i", url, "-H", kind, "-d", "{")
    assert head.startswith("HTTP/1.1 400")
    assert "x-request-id: " in head
    for host in (served.router.url, served.agent.url):
        assert json.loads(curl(f"{host}/health"))["status"] == "ok"


def test_a_body_over_the_limit_is_explained(served: Stack, tmp_path: Path) -> None:
    """The answer reaches a client that still sends."""
    big = tmp_path / "big.json"
    big.write_bytes(b'{"model":"default","messages":"' + b"x" * (33 * 2**20) + b'"}')
    kind = "content-type: application/json"
    for url in (f"{served.base_url}/chat/completions", f"{served.agent.url}/infer"):
        answer = json.loads(curl(url, "-H", kind, "-H", "expect:", "--data-binary", f"@{big}"))
        assert answer["error"]["code"] == "request_too_large"
