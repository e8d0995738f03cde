"""One log for a process: structlog for ours, the standard library's loggers joined in.

JSON lines, or aligned text on a terminal. Nothing here may hold a key, a prompt or a host path:
callers pass names and numbers, of an error only its kind and its places in the code are shown, and
escaping keeps a value on its line.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TextIO

import msgspec

from shared.kit.clock import wall_time


@contextmanager
def _hidden(*packages: str) -> Iterator[None]:
    """Let `import` find no such packages meanwhile, unless they are loaded already."""
    hidden = [package for package in packages if package not in sys.modules]
    for package in hidden:
        sys.modules[package] = None  # type: ignore[assignment] # the import system's own way to say so
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]


# structlog loads them wherever they are installed: Rich for tracebacks that we never show (4 MB, and a
# tenth of the time of a start), greenlet for threads that we do not use (1 MB)
with _hidden("rich", "greenlet"):
    import structlog
    from structlog.typing import Processor


get_logger = structlog.get_logger

_LEVELS = {"warn": "warning", "exception": "error"}  # as structlog's add_log_level names them
_MOST_PLACES = 12
_LATE_S = 0.05
_MOST_WAITING = 1000


class LogSink:
    """Writes lines to a stream; those of a running loop several at once, for the cost of one write.

    Warnings and errors, and lines outside of a loop, are written at once, after what waits.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._lines: list[str] = []
        self._lock = threading.RLock()  # threads log too, and handlers of signals
        self._flushing: asyncio.AbstractEventLoop | None = None
        atexit.register(self.flush)

    def info(self, line: str) -> None:
        """Write a line within the next moment."""
        with self._lock:
            self._lines.append(line + "\n")
            is_full = len(self._lines) >= _MOST_WAITING
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop runs here
            loop = None
        if loop is None or is_full:
            self.flush()
        elif self._flushing is not loop:  # a loop that has ended never does what it was to do later
            self._flushing = loop
            loop.call_later(_LATE_S, self.flush)

    debug = info

    def warning(self, line: str) -> None:
        """Write a line now."""
        self.write(line + "\n")

    error = critical = exception = warn = fatal = msg = warning

    def write(self, text: str) -> None:
        """Write text now, as a stream does."""
        with self._lock:
            self._lines.append(text)
        self.flush()

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:  # held while writing, or threads would write in another order
            lines, self._lines = self._lines, []
            self._flushing = None
            if lines and not self._stream.closed:
                self._stream.write("".join(lines))
                self._stream.flush()


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
    sink = LogSink(target)
    number = logging.getLevelName(level.upper())
    as_json = not target.isatty() if json is None else json
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        _Stamp(),
        _show_places,
    ]
    text: list[Processor] = [
        _escape_controls,
        structlog.dev.ConsoleRenderer(colors=target.isatty()),
    ]
    last: list[Processor] = [_json_renderer()] if as_json else text
    processors: list[Processor] = [_JsonLine()] if as_json else [*shared, *text]
    global _quick  # noqa: PLW0603 - as structlog's own configuration is
    _quick = _Quick(sink, processors) if as_json and number <= logging.INFO else None
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: sink,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sink)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # their information is ours already, or noise
    for name in ("uvicorn.error", "alembic", "httpx", "asyncio"):
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


class LineWriter:
    """Writes the lines that come with each request: as JSON past structlog's own machinery, while nobody needs it."""

    def __init__(self, name: str) -> None:
        """Write lines of the logger `name`."""
        self._name = name
        self._processors: object = None
        self._bound: Any = None

    def info(self, event: str, values: dict[str, Any]) -> None:
        """Write a line with these values, which become the writer's own."""
        processors = structlog.get_config()["processors"]
        if _quick is not None and _quick.is_in_force(processors):
            _quick.write(event, values)
        else:
            self._logger(processors).info(event, **values)

    def debug(self, event: str, values: dict[str, Any]) -> None:
        """Write a line that is worth one to those only who look for something."""
        self._logger(structlog.get_config()["processors"]).debug(event, **values)

    def _logger(self, processors: object) -> Any:
        """Return the logger; one that is bound anew for each line costs more than the line."""
        if self._bound is None or processors is not self._processors:
            self._bound, self._processors = get_logger(self._name).bind(), processors
        return self._bound


class _Quick:
    """Lines of level `info` as JSON."""

    def __init__(self, sink: LogSink, processors: list[Processor]) -> None:
        self._sink = sink
        self._processors = processors
        self._line = processors[0]

    def is_in_force(self, processors: list[Processor]) -> bool:
        """Tell whether nobody configured structlog otherwise since, as tests do that look at lines."""
        return processors is self._processors and processors[0] is self._line

    def write(self, event: str, values: dict[str, Any]) -> None:
        values["event"] = event
        self._sink.info(self._line(self._sink, "info", values))  # type: ignore[arg-type] # it returns text


_quick: _Quick | None = None


class _JsonLine:
    """Does what the processors of a JSON log do, in one call: each request has a line."""

    def __init__(self) -> None:
        self._stamp = _Stamp()

    def __call__(self, logger: Any, name: str, values: MutableMapping[str, Any]) -> str:
        values["level"] = _LEVELS.get(name, name)
        self._stamp(logger, name, values)
        if "exc_info" in values:
            _show_places(logger, name, values)
        return _as_json(values)


class _Stamp:
    """Adds the time, UTC in ISO 8601 with microseconds; what a second's lines share is made once."""

    def __init__(self) -> None:
        self._shared = -1, ""

    def __call__(self, _logger: Any, _name: str, values: MutableMapping[str, Any]) -> Any:
        now = wall_time()
        second = int(now)
        made_for, text = self._shared
        if made_for != second:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._shared = second, text
        values["timestamp"] = f"{text}.{int((now - second) * 1e6):06d}Z"
        return values


def _is_news(record: logging.LogRecord) -> bool:
    """Pass all but uvicorn's words for a stop that took as long as it may: the requests say it."""
    return "timeout graceful shutdown exceeded" not in record.getMessage()


def places(error: BaseException) -> list[str]:
    """Return where an error came through the code, outermost first: `module.function:line`.

    Unlike a traceback, this holds no path of the host and no message, which may quote a request.
    """
    found = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        module = trace.tb_frame.f_globals.get("__name__", "?")
        found.append(f"{module}.{code.co_name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return found[-_MOST_PLACES:]


def _show_places(_logger: Any, _name: str, values: MutableMapping[str, Any]) -> Any:
    given = values.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    error = _only(error)
    if isinstance(error, BaseException):
        values.setdefault("kind", type(error).__name__)
        values["trace"] = places(error)
    return values


def _only(error: Any) -> Any:
    """Return what a group of one holds, as task groups raise it: it says more than the group."""
    while len(getattr(error, "exceptions", ())) == 1:
        error = error.exceptions[0]
    return error


def _escape_controls(_logger: Any, _name: str, values: MutableMapping[str, Any]) -> Any:
    for key, value in values.items():
        if isinstance(value, str) and not value.isprintable():
            values[key] = repr(value)[1:-1]
    return values


_encode = msgspec.json.Encoder(enc_hook=str).encode


def _as_json(values: Any, **_: Any) -> str:
    return _encode(values).decode()


def _json_renderer() -> Processor:
    return structlog.processors.JSONRenderer(serializer=_as_json)
