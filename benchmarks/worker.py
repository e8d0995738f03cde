"""`python -m benchmarks.worker`: a model through router and agent against its engine asked directly.

Both must run already. Streams alternate between the two, so that both see the machine in the same
mood. The engine's address is in `iir-agent ps` or in its command line.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit

_QUESTION = [{"role": "user", "content": "Tell me a long story about a fox."}]


@dataclass(frozen=True, slots=True)
class Streamed:
    """One answer: seconds to the first text, and tokens per second over all of it."""

    ttft_s: float
    tokens_per_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if the ratio of the rates is at least what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("--direct", required=True, metavar="URL", help="the engine's address")
    parser.add_argument("--through", required=True, metavar="URL", help="the router's, or agent's")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=200, help="per answer")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--least", type=float, default=0.98, help="ratio of the tokens per second")
    asked = parser.parse_args(arguments)
    found: dict[str, list[Streamed]] = {"direct": [], "through": []}
    for number in range(asked.rounds + 1):
        for name, answers in found.items():
            one = _ask(getattr(asked, name), asked.model, asked.tokens)
            if number:  # the first of each warms up
                answers.append(one)
    for name, answers in found.items():
        ttft_ms = median(one.ttft_s for one in answers) * 1000
        rate = median(one.tokens_per_s for one in answers)
        print(f"{name}: TTFT {ttft_ms:.1f} ms, {rate:.1f} tokens/s (medians of {asked.rounds})")
    pairs = zip(found["through"], found["direct"], strict=True)
    ratio = median(through.tokens_per_s / direct.tokens_per_s for through, direct in pairs)
    print(f"tokens/s through against direct: {ratio:.3f}")
    return 0 if ratio >= asked.least else 1


def _ask(url: str, model: str, tokens: int) -> Streamed:
    """Stream one greedy answer of so many tokens, which the end of the text does not cut short."""
    body = {
        "model": model,
        "messages": _QUESTION,
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    began = time.perf_counter()
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"{url} answered {response.status}: {response.read(500).decode()}")
    first_s, used = 0.0, 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        used = (event.get("usage") or {}).get("completion_tokens", used)
        if not first_s and event["choices"] and event["choices"][0]["delta"].get("content"):
            first_s = time.perf_counter() - began
    took_s = time.perf_counter() - began
    connection.close()
    return Streamed(first_s, used / took_s)


if __name__ == "__main__":
    sys.exit(main())
