"""The program that a llama.cpp worker runs: an OpenAI-compatible server on xllamacpp.

It is its own process, never part of the agent's: native code that crashes must not end the agent.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ERRORS_ONLY = 1
"""llama.cpp's verbosity. From 2 on, its log quotes parts of requests."""

_MOST_BATCH_TOKENS = 2048
_PROMPT_CACHE_MIB = 512


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line that `llama_cpp.LlamaCpp.launch` makes."""
    parser = argparse.ArgumentParser(prog="llama_cpp_server", allow_abbrev=False)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", required=True, help="the name to serve under")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, default=4096, help="per request")
    parser.add_argument("--parallel", type=int, default=2, help="requests at once")
    parser.add_argument("--gpu-layers", type=int, default=-1, help="-1: as many as fit")
    parser.add_argument("--threads", type=int, default=0, help="0: llama.cpp's choice")
    parser.add_argument("--batch-tokens", type=int, default=0, help="0: by the context")
    parser.add_argument("--embeddings", choices=("true", "false"), default="true")
    return parser.parse_args(argv)


def parameters(options: argparse.Namespace, module: Any) -> Any:
    """Return llama.cpp's parameters; `module` is xllamacpp."""
    params = module.CommonParams()
    params.model.path = options.weights.name
    params.model_alias = {options.model}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.context_tokens * options.parallel  # it is divided among the slots
    params.n_gpu_layers = options.gpu_layers
    if options.threads > 0:
        params.cpuparams.n_threads = options.threads
    # one embedding must fit into one physical batch
    batch = options.batch_tokens or min(options.context_tokens, _MOST_BATCH_TOKENS)
    params.n_batch = params.n_ubatch = batch
    if options.embeddings == "true":
        # chat works beside it; without a pooling type /v1/embeddings is refused
        params.embedding = True
        params.pooling_type = module.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.use_jinja = True
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.endpoint_metrics = True
    params.endpoint_slots = False  # it shows prompts
    params.ui = False
    params.cors_origins = ""  # web pages have no business here
    params.verbosity = _ERRORS_ONLY
    return params


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, whose default action ends the process at once."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    import xllamacpp  # noqa: PLC0415 - an extra, and slow to load

    # a relative name keeps this host's folders out of llama.cpp's log and answers
    os.chdir(options.weights.parent)
    try:
        server = xllamacpp.Server(parameters(options, xllamacpp))
    except RuntimeError:
        # llama.cpp has written the cause; a traceback would add nothing but host paths
        print("error: llama.cpp did not start", file=sys.stderr)  # noqa: T201
        return 1
    signal.pause()
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
