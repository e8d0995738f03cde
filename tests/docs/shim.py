"""What stands for a program in a snippet's PATH; see `tests/docs/zygote.py`."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def main() -> int:
    """Have the program run; return its exit code."""
    address, program, *arguments = sys.argv[1:]
    numbers = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until there is somebody to hand them on to
    order = {
        "program": program,
        "arguments": arguments,
        "folder": os.getcwd(),  # noqa: PTH109 - starts in a few milliseconds: no pathlib
        "environment": dict(os.environ),  # noqa: TID251 - handed on
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(order).encode()], [0, 1, 2])
        answer = connection.makefile()
        child = int(answer.readline())
        for number in numbers:
            signal.signal(number, lambda which, _: os.kill(child, which))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        code = int(answer.readline())
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
