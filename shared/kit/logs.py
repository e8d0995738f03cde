"""One log for a process: structlog for ours, the standard library's loggers joined in.

JSON lines, or aligned text on a terminal. Nothing here may hold a key, a prompt or a host path:
callers pass names and numbers, and JSON escaping keeps a value on its line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import Processor


def configure_logs(
    *, level: str = "info", json: bool | None = None, stream: TextIO | None = None
) -> None:
    """Send all logs of this process to `stream` (default: stderr).

    Args:
        level: least severe level: debug, info, warning or error.
        json: JSON lines or text; None means text on a terminal, else JSON.
        stream: where to.
    """
    target = stream or sys.stderr
    number = logging.getLevelName(level.upper())
    as_json = not target.isatty() if json is None else json
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = _json_renderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # their information is ours already, or noise
    for name in ("uvicorn.error", "alembic", "httpx", "asyncio"):
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _json_renderer() -> Processor:
    def serialize(values: Any, **_: Any) -> str:
        return msgspec.json.encode(values, enc_hook=str).decode()

    return structlog.processors.JSONRenderer(serializer=serialize)
