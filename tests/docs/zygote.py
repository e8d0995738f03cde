"""Starts `iir`, `iir-agent` and `python` as processes that have imported everything already.

`python -m tests.docs.zygote SOCKET` listens there. Who connects (`tests/docs/shim.py`) hands over its
arguments, environment, folder and standard streams; a fork of this process becomes the program. A
process of its own costs a few milliseconds that way, in place of over a second. It ends with its
standard input, and everything that it started with it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import local_agent.__main__
import local_agent.app
import local_agent.cli.app
import local_agent.engines
import router.__main__
import router.app
import router.backends
import router.cli.root
import router.policies

MOST_BYTES = 1 << 20
LATER = (
    "aiohappyeyeballs",
    "alembic.command",
    "h11",
    "httpcore",
    "local_agent.api.framework",
    "router.api.control",
    "uvicorn.lifespan.on",
    "uvloop",
)
"""What the programs import when they first need it."""


def main() -> None:
    """Serve until the standard input ends."""
    for module in LATER:
        importlib.import_module(module)
    assert all([*router.policies.POLICIES, *router.backends.BACKENDS, *local_agent.engines.ENGINES])
    gc.collect()
    gc.freeze()  # what is here is not looked at again in each program
    running: set[int] = set()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(16)
        os.write(1, b"listening\n")
        while True:
            readable, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in readable:
                break
            connection, _ = listener.accept()
            with connection:
                running.add(_start(connection, listener))
            running -= set(_ended())
    running -= set(_ended())
    for group in running:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it ends just now
            os.killpg(group, signal.SIGTERM)
    os._exit(0)


def _ended() -> Iterator[int]:
    """Yield who has ended since this was asked last; whose number is not yielded is not used anew."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            yield ended


def _start(connection: socket.socket, listener: socket.socket) -> int:
    """Fork what waits for the program and tells the shim; return its process group."""
    data, streams, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
    order = json.loads(data)
    if order["program"] == "python":
        import anthropic  # noqa: PLC0415 - only where a snippet may want it
        import openai  # noqa: PLC0415 - likewise

        del anthropic, openai
    waiter = os.fork()
    if waiter == 0:
        listener.close()
        _wait_for(order, streams, connection)
    _lead_a_group(waiter)
    for stream in streams:
        os.close(stream)
    return waiter


def _lead_a_group(process: int) -> None:
    """Give a process a group; it does so itself as well, since nobody knows who comes first."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended by now
        os.setpgid(process, process)


def _wait_for(order: dict[str, Any], streams: list[int], connection: socket.socket) -> NoReturn:
    _lead_a_group(os.getpid())
    child = os.fork()
    if child == 0:
        connection.close()
        _become(order, streams)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % child)
        _, status = os.waitpid(child, 0)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(order: dict[str, Any], streams: list[int]) -> NoReturn:
    """Run the program in this process, which ends with it."""
    # what starts tests may ignore Ctrl-C, as shells do for what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()  # noqa: TID251 - a new process has its own
    os.environ.update(order["environment"])  # noqa: TID251 - likewise
    os.chdir(order["folder"])
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r"))
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), line_buffering=True)
    sys.argv = [order["program"], *order["arguments"]]
    code: object = 0
    try:
        _run(order["program"], order["arguments"])
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - as an interpreter does at its end
        sys.excepthook(*sys.exc_info())
        code = 1
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _run(program: str, arguments: list[str]) -> None:
    if program == "iir":
        router.__main__.main()
    elif program == "iir-agent":
        local_agent.__main__.main()
    else:
        assert arguments[0] == "-c"
        exec(compile(arguments[1], "snippet", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
