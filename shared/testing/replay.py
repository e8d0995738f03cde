"""Replays recorded HTTP (vcr.py's cassettes) from a small server on loopback.

vcr.py itself plays back inside the client library and hands a stream over in one piece; a server
shows status, headers and bytes to whatever speaks HTTP, event by event, and can break off.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from shared.testing.wire import Exchange, Request, WireServer

_FRAMING = frozenset({"content-length", "transfer-encoding", "connection"})
_EVENT = re.compile(rb".*?\n\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Interaction:
    """One recorded request with its answer; header names are in lower case."""

    method: str
    path: str
    body: bytes
    status: int
    headers: tuple[tuple[str, str], ...]
    answer: bytes

    @property
    def is_stream(self) -> bool:
        """Tell whether the answer is an event stream."""
        return dict(self.headers).get("content-type", "").startswith("text/event-stream")

    def pieces(self) -> list[bytes]:
        """Return the answer's body as it is sent: event by event, or whole."""
        return _EVENT.findall(self.answer) if self.is_stream else [self.answer]


def load_cassette(path: Path) -> tuple[Interaction, ...]:
    """Read a cassette.

    Raises:
        KeyError: it lacks a part that vcr.py writes.
    """
    return tuple(_interactions(yaml.safe_load(path.read_text())))


def _interactions(data: Any) -> Iterator[Interaction]:
    for recorded in data["interactions"]:
        request, response = recorded["request"], recorded["response"]
        named = response["headers"].items()
        yield Interaction(
            method=request["method"],
            path=urlsplit(request["uri"]).path,
            body=_bytes(request["body"]),
            status=response["status"]["code"],
            headers=tuple((name.lower(), value) for name, values in named for value in values),
            answer=_bytes(response["body"]["string"]),
        )


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""


@dataclass(slots=True)
class Replayer:
    """Answers each request with the first recording for its method and path.

    `cut_after`: break the connection after so many pieces of a body. `requests`: what came.
    """

    interactions: tuple[Interaction, ...]
    cut_after: int | None = None
    requests: list[Request] = field(default_factory=list)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request; one that was not recorded gets 404."""
        request = exchange.request
        self.requests.append(request)
        for found in self.interactions:
            if (found.method, found.path) == (request.method, request.path):
                await self._play(found, exchange)
                return
        await exchange.send_head(404, [], length=0)

    async def _play(self, found: Interaction, exchange: Exchange) -> None:
        headers = [(name, value) for name, value in found.headers if name not in _FRAMING]
        length = None if found.is_stream else len(found.answer)
        await exchange.send_head(found.status, headers, length=length)
        for number, piece in enumerate(found.pieces()):
            if number == self.cut_after:
                exchange.close()
                return
            await exchange.send_body(piece)
        await exchange.end_body()


@asynccontextmanager
async def replaying(
    *cassettes: Path, cut_after: int | None = None
) -> AsyncIterator[tuple[str, Replayer]]:
    """Serve cassettes; yields `http://HOST:PORT` and the replayer."""
    found = tuple(one for path in cassettes for one in load_cassette(path))
    replayer = Replayer(found, cut_after)
    server = WireServer(replayer.handle)
    try:
        yield await server.start("127.0.0.1", 0), replayer
    finally:
        await server.close()
