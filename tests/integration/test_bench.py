"""`iir-agent bench` measures the embedded model, and everybody is told."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import pytest

from tests.integration.stack import MODEL, Stack, until

pytestmark = pytest.mark.integration
_BENCH_S = 900


def test_the_table_of_a_real_model_is_filled(stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "local_agent", "bench", MODEL, "--json"],
        cwd=stack.home.parent,
        env=stack.env,
        capture_output=True,
        text=True,
        timeout=_BENCH_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (row,) = json.loads(done.stdout)
    figures = row["figures"]
    assert (figures["engine"], figures["engine_version"] is None) == ("llama_cpp", False)
    small, large = figures["ttft"]
    assert small["prompt_tokens"] < 200
    assert large["prompt_tokens"] > 700
    assert small["ttft_ms"] < large["ttft_ms"]
    assert min(figures["tokens_per_s"], figures["parallel_tokens_per_s"]) > 0.5
    assert 100 * 2**20 < figures["memory_peak_bytes"] < 2 * 2**30
    assert figures["load_s"] > 0

    (listed,) = (
        one for one in json.loads(stack.run("local_agent", "ls", "--json")) if one["bench"]
    )
    assert (listed["id"], listed["chosen"]) == (MODEL, "llama_cpp")
    assert "measured here" in listed["why"]

    def told() -> bool:
        url = f"{stack.base_url}/models/{MODEL}"
        rows = httpx.get(url, trust_env=False).json().get("bench", [])
        return [one["tokens_per_s"] for one in rows] == [figures["tokens_per_s"]]

    until(told, 30, "the router lists what was measured")
    assert stack.is_served()
