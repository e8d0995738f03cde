"""What clients see of engines that fail, break off or answer oddly."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from shared.testing.distortions import KINDS, STREAM_ONLY
from tests.loopback_sdks import openai_at
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, MESSAGES, chat, error_event_of, error_of, one_engine

HARMLESS = sorted(
    {"crlf", "cr", "no_space", "multi_line", "split", "byte_by_byte", "merged", "bom"}
    | {"no_final_blank", "sse_comment", "null_error", "after_done", "hang_after_done", "headers"}
)


@pytest.mark.parametrize("kinds", [HARMLESS[:7], HARMLESS[7:]], ids=["a-h", "h-z"])
async def test_what_is_harmless_reaches_the_sdk_as_a_whole_answer(
    start_router: StartRouter, kinds: list[str]
) -> None:
    async with (
        one_engine(start_router) as scene,
        openai_at(scene.router.base_url) as sdk,
    ):
        messages: Any = MESSAGES
        whole = await sdk.chat.completions.create(model="tiny", messages=messages)
        for kind in kinds:
            scene.engine.script.add(kind)
            stream = await sdk.chat.completions.create(model="tiny", messages=messages, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
            assert text == whole.choices[0].message.content, kind


BREAKS_OFF = [
    "cut:after=2",
    "cut:after=2,reset=true",
    "no_done",
    "no_done:after=2",
    "bad_chunk:after=2",
    "stall:after=2",
    "huge_line:after=2",
    *(
        f"error_event:after=2,shape={shape},done={done}"
        for shape in ("openai", "text", "vllm_old", "event_error", "message")
        for done in ("true", "false")
    ),
]


async def test_a_stream_that_breaks_off_ends_with_one_error_that_the_sdk_raises(
    start_router: StartRouter,
) -> None:
    async with (
        one_engine(start_router, router_idle_timeout_s=0.2) as scene,
        openai_at(scene.router.base_url) as sdk,
    ):
        messages: Any = MESSAGES
        for fault in BREAKS_OFF:
            scene.engine.script.add(fault)
            answer = await scene.client.post(CHAT, json=chat(stream=True))
            assert answer.status_code == 200, fault
            assert b"[DONE]" not in answer.content
            error = error_event_of(answer.content)
            assert error["message"]
            scene.engine.script.add(fault)
            stream = await sdk.chat.completions.create(model="tiny", messages=messages, stream=True)
            seen = []
            with pytest.raises(openai.APIError):
                async for chunk in stream:
                    seen.append(chunk)
            assert seen, fault


NO_ANSWER = {
    "empty_200": 502,
    "error_200": 502,
    "error_200:shape=string": 502,
    "garbage": 502,
    "html_502": 502,
    "redirect:location=http://169.254.169.254/": 502,
    "cut": 502,
    "cut:reset=true": 502,
    "cut:after=0": 502,
    "stall": 504,
    "status:code=500,shape=html": 500,
    "status:code=503,shape=detail": 503,
    "status:code=500,shape=empty": 500,
    "status:code=401": 502,
    "status:code=402": 502,
    "status:code=403": 502,
    "status:code=407": 502,
}
NO_STREAM = {
    "json_200": 502,
    "error_event": 502,
    "error_event:shape=text": 502,
    "error_event:shape=vllm_old,code=402": 502,
    "error_event:shape=vllm_old,code=429": 429,
    "error_event:shape=event_error": 502,
    "error_event:shape=message": 502,
    "no_done:after=0": 502,
    "stall:after=0": 504,
    "bad_chunk": 502,
}
NO_WHOLE = {"bad_json": 502, "cut:after=1": 502, "stall:after=1": 504}


async def test_an_upstream_that_fails_before_its_first_event_is_an_error_with_a_status(
    start_router: StartRouter,
) -> None:
    cases = [
        *(
            (fault, status, stream)
            for fault, status in NO_ANSWER.items()
            for stream in (True, False)
        ),
        *((fault, status, True) for fault, status in NO_STREAM.items()),
        *((fault, status, False) for fault, status in NO_WHOLE.items()),
    ]
    async with one_engine(
        start_router,
        router_attempts=1,
        router_first_byte_timeout_s=0.2,
        router_idle_timeout_s=0.2,
    ) as scene:
        for fault, status, stream in cases:
            scene.engine.script.add(fault)
            answer = await scene.client.post(CHAT, json=chat(stream=stream))
            error = error_of(answer)
            assert answer.headers["x-iir-error-origin"] == "upstream", fault
            assert answer.headers["x-iir-attempts"] == "1"
            assert answer.headers["x-iir-endpoint"] == "engine"
            assert answer.status_code == status, (fault, stream, error)
            text = answer.text + str(answer.headers)
            for secret in ("10.1.2.3", "169.254", "nginx", scene.upstream.rpartition(":")[2]):
                assert secret not in text, fault


def test_every_kind_of_fault_is_shown_here() -> None:
    shown = {
        text.partition(":")[0]
        for text in (*HARMLESS, *BREAKS_OFF, *NO_ANSWER, *NO_STREAM, *NO_WHOLE)
    }
    # left for the step that makes the data plane faithful to SDKs that choke on valid events
    later = {"sse_retry", "sse_id", "sse_event_only", "sse_ping", "sse_empty_data", "bad_utf8"}
    timing = {"slow", "slow_headers", "slow_stream", "crash"}
    assert shown | later | timing == set(KINDS)
    assert set(STREAM_ONLY) <= set(KINDS)


async def test_an_engine_that_dies_in_its_answer(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        scene.engine.script.add("crash:after=2")
        answer = await scene.client.post(CHAT, json=chat(stream=True))
        assert error_event_of(answer.content)["code"] == "upstream_interrupted"
        answer = await scene.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("kind", ["slow", "slow_headers", "slow_stream"])
async def test_a_slow_engine_is_waited_for(start_router: StartRouter, kind: str) -> None:
    async with one_engine(start_router, router_idle_timeout_s=0.5) as scene:
        scene.engine.script.add(f"{kind}:ms=60")
        answer = await scene.client.post(CHAT, json=chat(stream=True))
        assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("code", [400, 404, 413, 422])
async def test_an_error_of_the_clients_own_passes_unchanged(
    start_router: StartRouter, code: int
) -> None:
    async with one_engine(start_router) as scene:
        for stream in (True, False):
            scene.engine.script.add(f"status:code={code},shape=openai")
            answer = await scene.client.post(CHAT, json=chat(stream=stream))
            assert answer.status_code == code
            assert answer.content == (
                b'{"error": {"message": "simulated failure", "type": "server_error", '
                b'"param": null, "code": "simulated"}}'
            )
            assert answer.headers["x-iir-attempts"] == "1"
        scene.engine.script.add(f"status:code={code},shape=detail")
        assert error_of(await scene.client.post(CHAT, json=chat()))["code"] == "upstream_error"


@pytest.mark.parametrize(
    ("code", "named"), [(402, "upstream_unpaid"), (407, "upstream_credential_refused")]
)
async def test_what_the_operator_owes_is_not_the_clients_to_pay(
    start_router: StartRouter, code: int, named: str
) -> None:
    async with one_engine(start_router) as scene:
        scene.engine.script.add(f"status:code={code},shape=openai")
        answer = await scene.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (502, named)
        assert len(scene.router.router.fleet.breakers) == 0
        assert (await scene.client.post(CHAT, json=chat())).status_code == 200
