"""The model on torch, and the one thread that generates with it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .words import Ask, Done, Job, Refused

_BROKEN = "\ufffd"  # what a cut character decodes to


class StopText:
    """Passes on text up to the first stop string, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for any of `stops`, which are not empty."""
        self._stops = stops
        self._held = ""
        self.is_met = False

    def take(self, text: str) -> str:
        """Return what of the text so far can be passed on."""
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.is_met, self._held = True, ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """Return what was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of `text` begin `stop`."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in lengths if text.endswith(stop[:size])), 0)


class Sink:
    """Gets tokens from `generate`, and turns them into text: its streamer and its stopping criterion."""

    def __init__(self, job: Job, decode: Callable[[list[int]], str]) -> None:
        """Take the tokens of one job."""
        self._job = job
        self._decode = decode
        self._stop = StopText(job.ask.stops)
        self._is_prompt = True
        self._begin = self._end = 0
        self.ids: list[int] = []

    def put(self, value: Any) -> None:
        """Take the prompt first, then token by token."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self.ids.extend(value.reshape(-1).tolist())
        # decoded with the tokens before: what a token means depends on them
        before = self._decode(self.ids[self._begin : self._end])
        now = self._decode(self.ids[self._begin :])
        if len(now) > len(before) and not now.endswith(_BROKEN):
            self._begin, self._end = self._end, len(self.ids)
            self._pass_on(self._stop.take(now[len(before) :]))

    def end(self) -> None:
        """Take the end; what is held is passed on by `finish`."""

    def is_over(self) -> bool:
        """Tell whether a stop string came, or the client left."""
        return self._stop.is_met or self._job.left.is_set()

    def finish(self) -> Done:
        """Pass on what was held back, and say how it ended."""
        if not self._stop.is_met:
            before = self._decode(self.ids[self._begin : self._end])
            rest = self._decode(self.ids[self._begin :])[len(before) :]
            self._pass_on(self._stop.take(rest))
            self._pass_on(self._stop.rest())
        is_cut = len(self.ids) >= self._job.ask.max_tokens and not self._stop.is_met
        return Done("length" if is_cut else "stop", len(self.ids))

    def _pass_on(self, text: str) -> None:
        if text:
            self._job.put(text)


class Model:
    """The weights and the tokenizer; used by one thread."""

    def __init__(self, options: argparse.Namespace, torch: Any, transformers: Any) -> None:
        """Load them. Without an option MPS computes in float16, a CPU in float32."""
        has_mps = torch.backends.mps.is_available()
        self.device = options.device if options.device != "auto" else "mps" if has_mps else "cpu"
        if self.device == "mps" and not has_mps:
            raise SystemExit("error: there is no MPS here: use device auto or cpu")
        if options.threads:
            torch.set_num_threads(options.threads)
        kind = options.dtype
        if kind == "auto":
            kind = "float16" if self.device == "mps" else "float32"
        self._torch = torch
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, kind)
        )
        self._model = loaded.to(self.device).eval()
        self._criterion = transformers.StoppingCriteriaList
        self._ends = _numbers(loaded.generation_config.eos_token_id) or _numbers(
            self._tokenizer.eos_token_id
        )

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return [int(number) for number in self._tokenizer(text)["input_ids"]]

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the tokens of a conversation, by the model's own template."""
        if not self._tokenizer.chat_template:
            raise Refused("this model has no chat template; use /v1/completions")
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # noqa: BLE001 - jinja2's, and whatever a template raises
            raise Refused(f"the model's chat template does not take this: {error}") from None
        # the template has written the special tokens already
        found = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(number) for number in found]

    def run(self, job: Job) -> Done:
        """Generate until the end, a stop string, or the client's leaving."""
        ask, torch = job.ask, self._torch
        sink = Sink(job, lambda ids: str(self._tokenizer.decode(ids, skip_special_tokens=True)))
        if ask.seed is not None:
            torch.manual_seed(ask.seed)
        is_greedy = ask.temperature <= 0
        chosen = {} if is_greedy else {"temperature": ask.temperature, "top_p": ask.top_p}
        if not is_greedy:
            chosen["top_k"] = ask.top_k
        ids = torch.tensor([ask.ids], device=self.device)

        def is_over(_ids: Any, _scores: Any, **_: Any) -> Any:
            return torch.full((1,), sink.is_over(), dtype=torch.bool, device=self.device)

        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=not is_greedy,
                max_new_tokens=ask.max_tokens,
                eos_token_id=self._ends or None,
                pad_token_id=self._ends[0] if self._ends else 0,
                streamer=sink,
                stopping_criteria=self._criterion([is_over]),
                **chosen,
            )
        done = sink.finish()
        has_ended = bool(sink.ids) and sink.ids[-1] in self._ends
        return Done("stop", done.tokens) if has_ended else done


def _numbers(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(number) for number in (value if isinstance(value, list) else [value])]


class Line:
    """The generating thread, and who waits for it."""

    def __init__(self, model: Model) -> None:
        """Start the thread; it ends with the process."""
        self._model = model
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.running = 0
        threading.Thread(target=self._work, daemon=True).start()

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return self._jobs.qsize()

    @contextlib.contextmanager
    def job(self, ask: Ask) -> Iterator[asyncio.Queue[str | Done | Refused]]:
        """Queue a request and give what comes of it; it ends, wherever it is, with the context."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | Done | Refused]()

        def put(piece: str | Done | Refused) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: so is the client
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        job = Job(ask, put)
        self._jobs.put(job)
        try:
            yield pieces
        finally:
            job.left.set()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job.left.is_set():
                continue
            self.running = 1
            try:
                job.put(self._model.run(job))
            except Exception as error:  # noqa: BLE001 - one request's failure is not the others'
                kind = type(error).__name__
                sys.stderr.write(f"error: a generation failed: {kind}\n")
                job.put(Refused(f"the engine failed: {kind}", status=500))
            finally:
                self.running = 0
