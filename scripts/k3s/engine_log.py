"""Why vLLM gave up, from the end of its log.

vLLM is not killed when a context is too long: it says so and exits, over and over. The wordings are
those of vLLM 0.10 to 0.30 (`vllm/v1/core/kv_cache_utils.py`, `vllm/config/model.py`,
`vllm/v1/worker/gpu_worker.py`), of PyTorch and of huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from scripts.k3s.choice import again, other_model

_SHORTEST = 256
"""What the chart takes at least."""
_Match = re.Match[str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and the next step."""

    what: str
    step: str


def of_log(where: str, log: str) -> Finding | None:
    """Return what the log explains, or None; the rule that stands first wins."""
    flat = " ".join(log.split())  # a terminal's width may have broken the message
    for pattern, explain in _RULES:
        found = pattern.search(flat)
        if found is not None:
            return explain(where, found)
    return None


def _context(where: str, found: _Match) -> Finding:
    asked, fits = found["asked"], int(found["fits"])
    what = f"{where}: a context of {asked} tokens does not fit the memory; about {fits} do"
    if fits < _SHORTEST:
        return Finding(what, f"Take a smaller model: {other_model()}")
    return Finding(what, again(f"--set model.maxModelLen={fits}"))


def _context_unknown(where: str, found: _Match) -> Finding:
    what = f"{where}: a context of {found['asked']} tokens does not fit the memory"
    return Finding(what, f"Let vLLM take what fits: {again('--set model.maxModelLen=auto')}")


def _older_context(where: str, found: _Match) -> Finding:
    fits = found["fits"]
    what = f"{where}: a context of {found['asked']} tokens does not fit the memory; {fits} do"
    return Finding(what, again(f"--set model.maxModelLen={fits}"))


def _longer_than_model(where: str, found: _Match) -> Finding:
    most = int(float(found["most"]))
    what = f"{where}: the model's context is {most} tokens, {found['asked']} were asked for"
    return Finding(what, again(f"--set model.maxModelLen={most}"))


def _no_room(where: str, _: _Match) -> Finding:
    what = f"{where}: the weights leave no memory for any context"
    more = again("--set model.gpuMemoryUtilization=0.95")
    return Finding(what, f"Take a smaller or quantised model, or more of the GPU: {more}")


def _taken(where: str, found: _Match) -> Finding:
    free, total = float(found["free"]), float(found["total"])
    share = int(max(0.0, free / total - 0.02) * 100) / 100
    what = f"{where}: others have most of the GPU, {free:g} of {total:g} GiB are free"
    less = again(f"--set model.gpuMemoryUtilization={share:g}")
    step = "nvidia-smi shows who; end that"
    return Finding(what, f"{step}, or take less: {less}" if share >= 0.1 else f"{step}.")


def _gpu_memory(where: str, _: _Match) -> Finding:
    fewer = again("--set model.maxNumSeqs=8 --set model.gpuMemoryUtilization=0.85")
    what = f"{where}: the GPU's memory is full"
    return Finding(what, f"Work on less at once, or take a smaller model: {fewer}")


def _gated(where: str, found: _Match) -> Finding:
    model = found.groupdict().get("model") or "the model"
    page = f"https://huggingface.co/{model}" if "/" in model else "its page on huggingface.co"
    return Finding(
        f"{where}: {model} is gated, and the token does not open it (or there is none)",
        f"Accept its terms at {page}, make a token at https://huggingface.co/settings/tokens, "
        "then: HF_TOKEN=hf_… make k3s-up",
    )


def _unknown_model(where: str, found: _Match) -> Finding:
    model = found.groupdict().get("model") or "the model"
    what = f"{where}: huggingface.co has no {model}, or it is private"
    step = f"Is the name right? {other_model()}; a private one: HF_TOKEN=hf_… make k3s-up"
    return Finding(what, step)


def _no_hub(where: str, _: _Match) -> Finding:
    return Finding(
        f"{where}: huggingface.co can't be reached from the cluster",
        "Does this machine reach it, and does a pod have DNS? Behind a proxy: "
        + again("--set modelServer.env[0].name=HTTPS_PROXY --set modelServer.env[0].value=URL"),
    )


def _disk(where: str, _: _Match) -> Finding:
    return Finding(
        f"{where}: the disk is full", "Make room: a model takes 2 GB per billion parameters."
    )


def _old_gpu(where: str, _: _Match) -> Finding:
    return Finding(f"{where}: this GPU has no bfloat16", again("--set model.dtype=float16"))


_Rule = tuple[re.Pattern[str], Callable[[str, _Match], Finding]]
_RULES: tuple[_Rule, ...] = (
    (
        re.compile(
            r"models?'s max seq len \((?P<asked>\d+)\).{0,400}?estimated maximum model length is (?P<fits>\d+)"
        ),
        _context,
    ),
    (
        re.compile(
            r"model's max seq len \((?P<asked>\d+)\) is larger than the maximum number of tokens that can be "
            r"stored in KV cache \((?P<fits>\d+)\)"
        ),
        _older_context,
    ),
    (re.compile(r"models?'s max seq len \((?P<asked>\d+)\).{0,200}?KV cache"), _context_unknown),
    (
        re.compile(
            r"max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
            r"\([^=)]*=(?P<most>\d+(?:\.\d+)?)"
        ),
        _longer_than_model,
    ),
    (re.compile(r"No available memory for the cache blocks"), _no_room),
    (
        re.compile(
            r"Free memory on device[^(]*\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than"
        ),
        _taken,
    ),
    (re.compile(r"OutOfMemoryError|CUDA out of memory|HIP out of memory"), _gpu_memory),
    (re.compile(r"No space left on device"), _disk),
    (
        re.compile(r"Cannot access gated repo for url https?://[^/]+/(?P<model>[\w.-]+/[\w.-]+)"),
        _gated,
    ),
    (re.compile(r"GatedRepoError|trying to access a gated repo"), _gated),
    (
        re.compile(
            r"RepositoryNotFoundError|(?P<model>[\w.-]+/[\w.-]+) is not a local folder and is not a valid"
        ),
        _unknown_model,
    ),
    (
        re.compile(
            r"Failed to resolve 'huggingface\.co'|LocalEntryNotFoundError"
            r"|couldn't connect to 'https://huggingface\.co'"
        ),
        _no_hub,
    ),
    (re.compile(r"Bfloat16 is only supported on GPUs with compute capability"), _old_gpu),
)
