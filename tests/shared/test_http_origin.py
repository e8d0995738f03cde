"""Host and Origin: DNS rebinding and malicious web pages."""

from __future__ import annotations

from typing import Any

import pytest

from shared.http.errors import BadRequest, CrossSiteRefused, HostNotAllowed
from shared.http.origin import OriginRules, host_of, is_local, is_loopback, split_list

RULES = OriginRules("127.0.0.1", "ROUTER_ALLOWED_HOSTS")


def scope_of(**headers: str) -> dict[str, Any]:
    pairs = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return {"type": "http", "headers": pairs}


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "localhost.evil.example", "", "2130706433"],
)
def test_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("client", "server", "expected"),
    [
        (("127.0.0.1", 1), ("127.0.0.1", 8000), True),
        (("::1", 1), ("::1", 8000), True),
        (("192.168.1.9", 1), ("127.0.0.1", 8000), False),
        (("127.0.0.1", 1), ("192.168.1.8", 8000), False),
        (None, ("127.0.0.1", 8000), False),
        (("127.0.0.1", 1), None, False),
        (("127.0.0.1", 1), ("/run/router.sock", None), False),
        (("testclient", 1), ("testserver", 80), False),
    ],
)
def test_both_ends_have_to_be_on_loopback(client: Any, server: Any, expected: bool) -> None:
    assert is_local({"client": client, "server": server}) is expected


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Router.LAN:8000", "router.lan"),
        ("router.lan.", "router.lan"),
        ("[::1]:8000", "::1"),
        ("[::1", ""),
        ("", ""),
        (":8000", ""),
    ],
)
def test_the_host_of_a_host_header(text: str, host: str) -> None:
    assert host_of(text) == host


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "localhost.", "[::1]:8000"]
)
def test_loopback_names_are_always_served(host: str) -> None:
    RULES.check_host(scope_of(host=host))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "",
        "[::1",
        "evil.example\\@localhost",
    ],
)
def test_other_names_are_refused(host: str) -> None:
    with pytest.raises(HostNotAllowed, match="ROUTER_ALLOWED_HOSTS"):
        RULES.check_host(scope_of(host=host))


def test_there_is_exactly_one_host_header() -> None:
    with pytest.raises(BadRequest):
        RULES.check_host(scope_of())
    with pytest.raises(BadRequest):
        RULES.check_host({"headers": [(b"host", b"localhost"), (b"host", b"evil.example")]})


def test_further_names_can_be_allowed() -> None:
    rules = OriginRules("127.0.0.1", "X", split_list(" Router.lan , mac.local,"))
    rules.check_host(scope_of(host="ROUTER.lan:8000"))
    with pytest.raises(HostNotAllowed):
        rules.check_host(scope_of(host="other.lan"))
    OriginRules("127.0.0.1", "X", frozenset({"*"})).check_host(scope_of(host="any.example"))


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", ""])
def test_a_service_on_all_addresses_answers_to_addresses_but_not_to_names(bound: str) -> None:
    rules = OriginRules(bound, "X")
    rules.check_host(scope_of(host="192.168.1.8:8000"))
    rules.check_host(scope_of(host="[fd00::1]:8000"))
    with pytest.raises(HostNotAllowed):
        rules.check_host(scope_of(host="rebound.example"))


def test_a_service_on_one_address_answers_to_that_one() -> None:
    rules = OriginRules("192.168.1.8", "X")
    rules.check_host(scope_of(host="192.168.1.8:8000"))
    with pytest.raises(HostNotAllowed):
        rules.check_host(scope_of(host="192.168.1.9:8000"))


def test_a_bound_name_is_served_in_any_case() -> None:
    OriginRules("Mac.local", "X").check_host(scope_of(host="mac.LOCAL:8000"))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "HTTP://127.0.0.1:8000"},
        {"origin": "https://127.0.0.1:8000"},
        {"sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
    ],
)
def test_programs_and_own_pages_may_call(headers: dict[str, str]) -> None:
    RULES.check_origin(scope_of(host="127.0.0.1:8000", **headers))


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://127.0.0.1"},
        {"origin": "file://"},
        {"origin": "http://127.0.0.1:8000.evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "Cross-Site"},
        {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "cross-site"},
    ],
)
def test_foreign_pages_may_not(headers: dict[str, str]) -> None:
    with pytest.raises(CrossSiteRefused):
        RULES.check_origin(scope_of(host="127.0.0.1:8000", **headers))


def test_a_listed_origin_may_call_from_another_site() -> None:
    rules = OriginRules("127.0.0.1", "X", frozenset(), split_list("https://App.example"))
    rules.check_origin(
        scope_of(host="localhost", origin="https://app.example", sec_fetch_site="cross-site")
    )
    with pytest.raises(CrossSiteRefused):
        rules.check_origin(scope_of(host="localhost", origin="https://app.example.evil"))


def test_a_list_of_a_setting() -> None:
    assert split_list("") == frozenset()
    assert split_list(" a ,B,, a") == frozenset({"a", "b"})
