"""How much memory there is for workers, and how much one will take. Pure; all sizes in MiB."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from local_agent.domain import Deployment, HostFacts
from local_agent.engines._vllm import kv_cache_gib

_WEIGHTS_FACTOR = 1.05
_PEAK_FACTOR = 1.05
# vLLM on a CPU: API server 0.55, EngineCore 0.54, worker 1.6 GB
_VLLM_MB = 2700
_ENGINE_MB: Mapping[str, int] = {
    "simulated": 96,
    "llama_cpp": 256,
    "external": 0,
    "vllm": _VLLM_MB,
    "vllm_docker": _VLLM_MB,
    "vllm_metal": _VLLM_MB,
    "mlx_lm": 256,
    "torch_mps": 512,
}
_WITH_KV_OPTION = frozenset({"vllm", "vllm_docker"})
_OTHER_ENGINE_MB = 1024
# Where the device can't be asked: less than any Mac was seen to give (10.67 GB of 16 is the least).
_UNKNOWN_METAL_SHARE = 0.5
_RESERVE_SHARE = 0.2
_LEAST_RESERVE_MB = 2048
_KV_KIB_AT_100_MB = 24.0
_UNITS = {"MB": 1e6 / 2**20, "GB": 1e9 / 2**20, "MIB": 1.0, "GIB": 1024.0}
_SIZE = re.compile(r"(\d{1,7}(?:\.\d{1,3})?)\s*([MG]i?B)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Return the MiB of a text like `6 GiB` or `800MB`, rounded up.

    Raises:
        ValueError: it is no such text.
    """
    found = _SIZE.fullmatch(text.strip())
    mb = 0 if found is None else math.ceil(float(found[1]) * _UNITS[found[2].upper()])
    if mb < 1:
        raise ValueError("must be a size like 6 GiB or 800 MB")
    return mb


def budget_mb(host: HostFacts, *, budget: int | None = None, reserve: int | None = None) -> int:
    """Return what all workers together may take: `min(accelerator limit, total - reserve)`.

    Args:
        host: its memory and platform.
        budget: what the configuration says, which wins.
        reserve: what is left to others; default: a fifth of the memory, at least 2 GiB, at most half.
    """
    if budget is not None:
        return budget
    return max(0, min(_limit_mb(host), host.memory_mb - reserve_mb(host, reserve)))


def reserve_mb(host: HostFacts, reserve: int | None = None) -> int:
    """Return what is left to others: what the configuration says, else a share of the memory."""
    if reserve is not None:
        return reserve
    total = host.memory_mb
    return min(max(int(total * _RESERVE_SHARE), _LEAST_RESERVE_MB), total // 2)


def budget_reason(host: HostFacts, *, budget: int | None = None, reserve: int | None = None) -> str:
    """Say where the budget comes from; the arguments are those of `budget_mb`."""
    if budget is not None:
        return "`memory_budget` says so"
    kept = reserve_mb(host, reserve)
    if _limit_mb(host) >= host.memory_mb - kept:
        return f"{host.memory_mb} MiB, of which {kept} are left to other programs"
    if host.accelerator_mb is not None:
        return f"the limit that Metal tells, of {host.memory_mb} MiB in all"
    return f"half of {host.memory_mb} MiB, since Metal does not tell its limit here; set `memory_budget`"


def _limit_mb(host: HostFacts) -> int:
    if host.accelerator_mb is not None:
        return host.accelerator_mb
    return int(host.memory_mb * _UNKNOWN_METAL_SHARE) if host.is_apple_silicon else host.memory_mb


def estimate_mb(deployment: Deployment, weights_bytes: int, peak_mb: int | None = None) -> int:
    """Return what a worker of this deployment takes.

    What the configuration says wins; then the measured peak of an earlier run; else the weights,
    the KV cache and what its engine takes by itself.

    Args:
        deployment: with its context and how many requests it serves at once.
        weights_bytes: size of the weights; 0 if there are none.
        peak_mb: the most that a worker of this deployment was seen to take.
    """
    if deployment.external_url is not None:
        return 0
    if deployment.memory_mb is not None:
        return deployment.memory_mb
    weights_mb = weights_bytes / 2**20
    if peak_mb is not None:
        # what lies on a GPU is not seen in a process: no worker takes less than its weights
        return math.ceil(max(peak_mb * _PEAK_FACTOR, weights_mb))
    fixed_mb = _ENGINE_MB.get(deployment.engine, _OTHER_ENGINE_MB)
    return math.ceil(weights_mb * _WEIGHTS_FACTOR + _kv_cache_mb(deployment, weights_mb) + fixed_mb)


def _kv_cache_mb(deployment: Deployment, weights_mb: float) -> float:
    """Return vLLM's KV cache, which has a size of its own; guess that of others by the weights.

    It grows with layers and width, weights with width squared. 24 KiB per token at 100 MiB is a
    little over what SmolLM2-135M and Mistral-7B take at fp16.
    """
    if deployment.engine in _WITH_KV_OPTION:
        return kv_cache_gib(deployment) * 1024
    kib_per_token = _KV_KIB_AT_100_MB * math.sqrt(weights_mb / 100)
    return kib_per_token * deployment.context_tokens * deployment.parallel / 1024
