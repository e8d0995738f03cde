"""Which headers cross the service: allow-lists in both directions."""

from __future__ import annotations

import pytest

from shared.http.errors import ApiError, BadRequest, UpstreamAnswer, internal_error
from shared.http.headers import (
    find_header,
    pass_on,
    pass_upstream,
    retry_after_s,
    wait_preference,
)

AT_7_26_30 = 1792567590.0  # on 21 October 2026, GMT


def test_a_header_is_found_in_any_case_and_the_first_one_counts() -> None:
    headers = [(b"X-One", b"1"), (b"x-one", b"2")]
    assert find_header(headers, b"x-one") == b"1"
    assert find_header(headers, b"x-two") is None


def test_of_an_upstreams_headers_only_the_listed_reach_the_client() -> None:
    passed = [
        (b"Content-Type", b"text/event-stream"),
        (b"retry-after", b"1"),
        (b"retry-after-ms", b"900"),
        (b"x-should-retry", b"false"),
        (b"X-RateLimit-Remaining-Tokens", b"7"),
        (b"openai-processing-ms", b"3"),
    ]
    dropped = [
        (b"set-cookie", b"a=1"),
        (b"server", b"nginx"),
        (b"openai-organization", b"org-1"),
        (b"openai-project", b"proj"),
        (b"x-request-id", b"theirs"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"3"),
        (b"content-encoding", b"gzip"),
        (b"connection", b"close"),
        (b"keep-alive", b"timeout=5"),
        (b"alt-svc", b"h3"),
        (b"location", b"http://internal"),
        (b"access-control-allow-origin", b"*"),
        (b"x-iir-zone", b"local"),
        (b"x-llm-d-worker", b"10.0.0.1"),
        (b"via", b"1.1 internal"),
    ]
    assert pass_on([*dropped, *passed]) == [(key.lower(), value) for key, value in passed]


def test_of_an_upstreams_headers_that_come_twice_the_first_counts() -> None:
    first = [(b"content-type", b"text/event-stream"), (b"retry-after", b"1")]
    second = [(b"Content-Type", b"text/html"), (b"Retry-After", b"9"), (b"x-ratelimit-a", b"1")]
    assert pass_on([*first, *second, (b"x-ratelimit-a", b"2")]) == [
        *first,
        (b"x-ratelimit-a", b"1"),
    ]


def test_of_a_clients_headers_only_the_listed_go_upstream() -> None:
    passed = [(b"openai-beta", b"x"), (b"traceparent", b"00-1"), (b"tracestate", b"a=b")]
    dropped = [
        (b"authorization", b"Bearer sk-client"),
        (b"cookie", b"a=1"),
        (b"host", b"router"),
        (b"x-llm-d-x", b"1"),
        (b"x-gateway-destination-endpoint", b"10.0.0.1"),
        (b"x-slo-ttft", b"1"),
        (b"x-prefiller-host-port", b"10.0.0.1:1"),
        (b"x-stainless-os", b"Linux"),
        (b"openai-organization", b"org"),
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x-iir-zone", b"local"),
    ]
    expected = tuple((key.decode(), value.decode()) for key, value in passed)
    assert pass_upstream([*dropped, *passed]) == expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b"7", 7.0),
        (b"1.5", 1.5),
        (b"999999999", 86400.0),
        (b"-1", None),
        (b"", None),
        (b".", None),
        (b"1e3", None),
        (b"nan", None),
        (b"Wed, 21 Oct 2026 07:28:00 GMT", 90.0),
        (b"Wed, 21 Oct 2026 07:26:00 GMT", 0.0),
        (b"Wed, 21 Oct 9999 07:28:00 GMT", 86400.0),
        (b"Wed, 41 Oct 2026 07:28:00 GMT", None),
        (b"soon", None),
        (b"\xb2", None),
        (None, None),
    ],
)
def test_retry_after_in_seconds(value: bytes | None, seconds: float | None) -> None:
    headers = [] if value is None else [(b"Retry-After", value)]
    assert retry_after_s(headers, lambda: AT_7_26_30) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"1500", 1.5), (b"0", 0.0), (b"9" * 12, 86400.0), (b"soon", 7.0)]
)
def test_retry_after_in_milliseconds_is_more_exact(value: bytes, seconds: float) -> None:
    headers = [(b"retry-after", b"7"), (b"Retry-After-Ms", value)]
    assert retry_after_s(headers) == seconds


def test_an_error_is_rendered_in_openais_shape() -> None:
    error = BadRequest('quote " and\nline', param="model", headers=(("x-own", "1"),))
    assert error.body() == (
        b'{"error":{"message":"quote \\" and\\nline","type":"invalid_request_error",'
        b'"param":"model","code":"invalid_request"}}'
    )
    assert error.event() == b"data: " + error.body() + b"\n\n"
    headers = dict(error.response_headers())
    assert headers[b"x-iir-error-origin"] == b"client"
    assert headers[b"x-own"] == b"1"
    assert b"retry-after" not in headers


@pytest.mark.parametrize(("seconds", "value"), [(0.1, b"1"), (0, b"1"), (2.5, b"3"), (5, b"5")])
def test_retry_after_is_rounded_up(seconds: float, value: bytes) -> None:
    error = ApiError("later", retry_after_s=seconds)
    found = dict(error.response_headers()).get(b"retry-after")
    assert found == value


def test_an_upstreams_answer_keeps_its_parts() -> None:
    error = UpstreamAnswer("no", status=418, type_="teapot", code=None, is_retryable=False)
    assert (error.status, error.type, error.code) == (418, "teapot", "upstream_error")
    assert b'"param":null' in error.body()


def test_a_defect_says_nothing_of_its_cause() -> None:
    assert internal_error().status == 500
    assert internal_error().code == "internal_error"


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        (b"wait=0", 0),
        (b"respond-async, WAIT = 10", 10),
        (b'wait="3", handling=lenient', 3),
        (b"handling=lenient; wait=3", None),
        (b"await=5", None),
        (b"wait=-1", None),
        (b"wait=1.5", None),
        (b"wait=soon", None),
    ],
)
def test_how_long_a_client_prefers_to_wait(prefer: bytes | None, seconds: float | None) -> None:
    assert wait_preference(prefer) == seconds
