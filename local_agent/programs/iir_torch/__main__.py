"""The command line that the engine `torch_mps` makes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from .generation import Line, Model
from .serving import Server
from .words import Limits

_LOOPBACK = "127.0.0.1"
# the agent waits about as long before it kills
_LAST_ANSWERS_S = 2


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="iir_torch", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--name", required=True, help="the name to serve under")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-tokens", type=int, required=True)
    parser.add_argument("--max-prompt-tokens", type=int, required=True)
    parser.add_argument("--device", choices=("auto", "mps", "cpu"), default="auto")
    parser.add_argument(
        "--dtype", choices=("auto", "float16", "bfloat16", "float32"), default="auto"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model, then listen: whoever connects is served."""
    options = arguments(sys.argv[1:] if argv is None else argv)
    torch, transformers, uvicorn = (
        importlib.import_module(name) for name in ("torch", "transformers", "uvicorn")
    )
    model = Model(options, torch, transformers)
    print(f"serving on {model.device}", flush=True)  # noqa: T201 - the worker's log
    limits = Limits(context=options.context_tokens, prompt=options.max_prompt_tokens)
    config = uvicorn.Config(
        Server(options.name, Line(model), model, limits),
        host=_LOOPBACK,
        port=options.port,
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )
    uvicorn.Server(config).run()
    sys.stdout.flush()
    os._exit(0)  # the generating thread may be in the middle of a step: nothing waits for it


if __name__ == "__main__":
    main()
