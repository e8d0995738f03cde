"""What the terminal shows."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from scripts.devstack.plan import log_path

QUESTION = "What is the capital of France? Answer in one sentence."
BIG_MODEL = "local_mistral-7b-instruct-q4"


def say(line: str) -> None:
    """Print one line now, also when stdout is a file; the terminal may be gone by now."""
    with suppress(OSError):
        print(line, flush=True)


def curl(router_url: str, *, needs_key: bool = False) -> str:
    """Return a line for a shell that asks the default model a question."""
    body = {
        "model": "default",
        "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    key = " -H 'authorization: Bearer YOUR_KEY'" if needs_key else ""
    return (
        f"curl -s {router_url}/v1/chat/completions -H 'content-type: application/json'{key}"
        f" -d '{json.dumps(body)}'"
    )


def snippet(router_url: str, *, needs_key: bool = False) -> str:
    """Return the same for OpenAI's Python SDK, in three lines."""
    key = "YOUR_KEY" if needs_key else "any"
    messages = json.dumps([{"role": "user", "content": QUESTION}])
    ask = f'client.chat.completions.create(model="default", temperature=0, messages={messages})'
    return (
        "from openai import OpenAI  # pip install openai\n"
        f'client = OpenAI(base_url="{router_url}/v1", api_key="{key}")\n'
        f"print({ask}.choices[0].message.content)"
    )


def ready_text(home: Path, router_url: str, *, needs_key: bool, has_model: bool, stop: str) -> str:
    """Return `ready: …` and what a newcomer needs next."""
    paragraphs = [f"ready: {router_url}/v1"]
    if not has_model:
        paragraphs.append("The embedded model is not there; other models work. With it:")
    paragraphs += [curl(router_url, needs_key=needs_key), snippet(router_url, needs_key=needs_key)]
    programs = shown(Path(sys.executable).parent)
    hints = [
        f"a bigger model: {programs}/iir-agent pull {BIG_MODEL}",
        f"logs: {shown(log_path(home, 'router'))} {shown(log_path(home, 'agent'))}",
        f"stop: {stop}",
    ]
    if needs_key:
        hints.insert(0, f"keys are in force: {programs}/iir keys create --name NAME makes one")
    return "\n\n".join([*paragraphs, "\n".join(hints)])


def tail(path: Path, lines: int = 15) -> str:
    """Return the end of a log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 8192))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


def shown(path: Path) -> str:
    """Return the path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


class Waiting:
    """A line that appears when something takes over two seconds, rewritten on a terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._started = time.monotonic()
        self._shown_at = 0.0

    def tick(self) -> None:
        """Show the line if it is time."""
        elapsed = time.monotonic() - self._started
        is_terminal = sys.stdout.isatty()
        pause_s = 0.5 if is_terminal else 15
        if elapsed < 2 or (self._shown_at and elapsed - self._shown_at < pause_s):
            return
        self._shown_at = elapsed
        line = f"{self._what}: {elapsed:.0f} s"
        print(
            f"\r\033[K{line}" if is_terminal else line, end="" if is_terminal else "\n", flush=True
        )

    def clear(self) -> None:
        """Take the line off a terminal."""
        if self._shown_at and sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)
