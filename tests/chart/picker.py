"""An endpoint picker that does what it is told: `python -m tests.chart.picker PORT` (0 takes a free one).

It speaks ext_proc as llm-d's does (bodies in full duplex, refusals in plain text) and picks pods in turn.
Orders are lines of JSON on its standard input, each answered by a line; its first line is its port.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2 as core
from envoy.service.ext_proc.v3 import external_processor_pb2 as api
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as service

_PIECE = 62_000  # of a body: the real one sends no bigger pieces
_DESTINATION = "x-gateway-destination-endpoint"


class Picker(service.ExternalProcessorServicer):  # type: ignore[misc] # generated code has no types
    """Answers Envoy's questions by its orders."""

    def __init__(self) -> None:
        self.order: dict[str, Any] = {"do": "pick", "pods": []}
        self.seen: list[dict[str, str]] = []
        self._picks = 0

    async def Process(  # noqa: N802 - the service's name for it
        self, questions: AsyncIterator[Any], context: object
    ) -> AsyncIterator[Any]:
        """Answer what Envoy asks about one request, from its headers to the end of the answer."""
        body = b""
        async for question in questions:
            kind = question.WhichOneof("request")
            if kind == "request_headers":
                self.seen.append(_headers(question.request_headers))
                is_whole = question.request_headers.end_of_stream
            elif kind == "request_body":
                body += question.request_body.body
                is_whole = question.request_body.end_of_stream
            else:
                yield _passed_on(kind, question)
                continue
            if not is_whole:
                continue
            if self.order["do"] == "hang":
                await asyncio.Event().wait()
            refusal = self._refusal()
            if refusal is not None:
                yield refusal
                return
            for answer in self._choice(body, has_body=kind == "request_body"):
                yield answer

    def _choice(self, body: bytes, *, has_body: bool) -> list[Any]:
        pods = self.order["pods"]
        pod = pods[self._picks % len(pods)]
        self._picks += 1
        headers = {_DESTINATION: pod}
        if has_body:
            headers["content-length"] = str(len(body))
        common = api.CommonResponse(clear_route_cache=True, header_mutation=_set(headers))
        answers = [
            api.ProcessingResponse(request_headers=api.HeadersResponse(response=common)),
        ]
        if has_body:
            starts = range(0, len(body), _PIECE) or [0]
            answers += [
                _piece("request_body", body[at : at + _PIECE], ends=at + _PIECE >= len(body))
                for at in starts
            ]
        return answers

    def _refusal(self) -> Any:
        order = self.order
        if order["do"] == "pick" and not order["pods"]:
            order = _NO_PODS
        if order["do"] != "refuse":
            return None
        reason = order["reason"]
        return api.ProcessingResponse(
            immediate_response=api.ImmediateResponse(
                status={"code": order["status"]},
                body=order["body"].encode(),
                headers=_set({"x-llm-d-request-dropped-reason": reason} if reason else {}),
            )
        )


_NO_PODS = {
    "do": "refuse",
    "status": 500,
    "reason": "",
    "body": "inference error: Internal - no pods available in datastore",
}


def _headers(message: Any) -> dict[str, str]:
    return {
        header.key: (header.raw_value or header.value.encode()).decode("latin-1")
        for header in message.headers.headers
    }


def _set(headers: dict[str, str]) -> Any:
    overwrite = core.HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    return api.HeaderMutation(
        set_headers=[
            core.HeaderValueOption(
                header=core.HeaderValue(key=name, raw_value=value.encode()),
                append_action=overwrite,
            )
            for name, value in headers.items()
        ]
    )


def _piece(kind: str, data: bytes, *, ends: bool) -> Any:
    streamed = api.StreamedBodyResponse(body=data, end_of_stream=ends)
    common = api.CommonResponse(body_mutation=api.BodyMutation(streamed_response=streamed))
    return api.ProcessingResponse(**{kind: api.BodyResponse(response=common)})


def _passed_on(kind: str, question: Any) -> Any:
    """Return the answer that changes nothing."""
    if kind == "response_body":
        found = question.response_body
        return _piece(kind, found.body, ends=found.end_of_stream)
    if kind == "response_headers":
        return api.ProcessingResponse(response_headers=api.HeadersResponse())
    return api.ProcessingResponse(**{kind: api.TrailersResponse()})


async def serve(port: int) -> None:
    """Serve until the standard input ends."""
    picker = Picker()
    server = grpc.aio.server()
    service.add_ExternalProcessorServicer_to_server(picker, server)
    say(server.add_insecure_port(f"127.0.0.1:{port}"))
    await server.start()
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        if order["do"] == "tell":
            say(picker.seen)
            continue
        picker.order = order
        say("done")


def say(answer: object) -> None:
    """Write one line."""
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
    os._exit(0)  # what hangs is meant to, and is not waited for
