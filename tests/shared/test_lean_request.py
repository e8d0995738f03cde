"""What the lean transport sends: the first lines, and what it refuses to send."""

from __future__ import annotations

import pytest

from shared.http.errors import UpstreamFailed
from shared.http.lean_request import Requests

# what is sent


@pytest.mark.parametrize(
    ("url", "origin", "start"),
    [
        ("http://a.example", "http://a.example:80", "GET / HTTP/1.1\r\nhost: a.example\r\n"),
        ("http://A.Example:80/b", "http://a.example:80", "GET /b HTTP/1.1\r\nhost: a.example\r\n"),
        ("https://a:8443/?q", "https://a:8443", "GET /?q HTTP/1.1\r\nhost: a:8443\r\n"),
        ("https://a:443/b#c", "https://a:443", "GET /b HTTP/1.1\r\nhost: a\r\n"),
        ("http://[::1]:81/", "http://[::1]:81", "GET / HTTP/1.1\r\nhost: [::1]:81\r\n"),
        ("http://[::1]/", "http://[::1]:80", "GET / HTTP/1.1\r\nhost: [::1]\r\n"),
        ("http://bücher.example/ü?ü=%20", "http://xn--bcher-kva.example:80", "GET /%C3%BC?%C3%BC="),
        ("http://a/b%2Fc?d=e&f=[1]", "http://a:80", "GET /b%2Fc?d=e&f=[1] HTTP/1.1\r\n"),
    ],
)
def test_the_first_lines(url: str, origin: str, start: str) -> None:
    target = Requests().target("GET", url)
    assert target.origin == origin
    assert target.start.startswith(start)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:key@a/",
        "http://a:0/",
        "http://a:99999/",
        "http://a:x/",
        "http://a/b c",
        "http://a/b\r\nx: y",
        "http://a\\@b/",
        "http:///b",
        "//a/b",
        "http://" + "ü" * 80 + "/",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UpstreamFailed) as failed:
        Requests().target("GET", url)
    assert url not in failed.value.message


@pytest.mark.parametrize("method", ["", "G T", "GET\r\n", "CONNECT"])
def test_methods_that_are_refused(method: str) -> None:
    with pytest.raises(UpstreamFailed):
        Requests().target(method, "http://a/")


@pytest.mark.parametrize(
    "header",
    [
        ("x", "a\0b"),
        ("x", "\u20ac"),
        ("", "a"),
        ("x y", "a"),
        ("x:", "a"),
        ("ü", "a"),
        ("Content-Length", "3"),
        ("transfer-encoding", "chunked"),
        ("Host", "b"),
    ],
)
def test_headers_that_are_refused(header: tuple[str, str]) -> None:
    requests = Requests()
    target = requests.target("POST", "http://a/")
    for length in (None, 3):
        with pytest.raises(UpstreamFailed):
            requests.head(target, [("x-good", "1"), header], length)
    assert requests.head(target, [("x-good", "\u00fc")], 3).endswith(
        b"x-good: \xfc\r\ncontent-length: 3\r\n\r\n"
    )


def test_what_is_remembered_is_bounded() -> None:
    requests = Requests()
    for number in range(3000):
        target = requests.target("GET", f"http://a/{number}")
        requests.head(target, [(f"x-{number}", "1")], None)
    assert len(requests._targets) <= 1024
    assert len(requests._names) <= 1024
