"""Which address an agent may give: never a way to make the router call elsewhere."""

from __future__ import annotations

import pytest

from router.errors import AgentAddressRefused
from router.fleet.address import check_agent_url

NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("url", "caller", "expected"),
    [
        ("http://127.0.0.1:5000", "127.0.0.1", "http://127.0.0.1:5000"),
        ("http://127.0.0.1:5000/", "::1", "http://127.0.0.1:5000"),
        ("http://[::1]:5000", "127.0.0.1", "http://[::1]:5000"),
        ("http://[::ffff:127.0.0.1]:5000", "127.0.0.1", "http://127.0.0.1:5000"),
        ("http://192.168.1.9:5000", "192.168.1.9", "http://192.168.1.9:5000"),
        ("http://192.168.1.9:5000", "::ffff:192.168.1.9", "http://192.168.1.9:5000"),
        ("https://[fd00::9]:5000", "fd00::9", "https://[fd00::9]:5000"),
        ("HTTP://10.0.0.9:5000", "10.0.0.9", "http://10.0.0.9:5000"),
    ],
)
def test_an_agents_own_address_is_taken(url: str, caller: str, expected: str) -> None:
    assert check_agent_url(url, caller, NONE) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254:80",
        "http://[::ffff:169.254.169.254]:80",
        "http://[fe80::1]:80",
        "http://[::ffff:a9fe:a9fe]:80",
        "http://[64:ff9b::a9fe:a9fe]:80",
        "http://[2002:a9fe:a9fe::]:80",
        "http://[fd00:ec2::254]:80",
        "http://2852039166:80",
        "http://0xa9fea9fe:80",
        "http://0xa9.0xfe.0xa9.0xfe:80",
        "http://0251.0376.0251.0376:80",
        "http://169.254.43518:80",
        "http://[fe80::1%25eth0]:80",
        "http://0.0.0.0:5000",
        "http://[::]:5000",
        "http://224.0.0.1:5000",
        "http://metadata.google.internal:80",
        "http://localhost:5000",
        "http://evil.example:5000",
        "http://2130706433:5000",
        "http://0x7f000001:5000",
        "http://0177.0.0.1:5000",
        "http://127.1:5000",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:x",
        "http://user@127.0.0.1:5000",
        "http://user:pass@127.0.0.1:5000",
        "http://@127.0.0.1:5000",
        "http://a\\@127.0.0.1:5000",
        "http://127.0.0.1:5000\\@evil.example",
        "http://127.0.0.1:5000/v1",
        "http://127.0.0.1:5000/../x",
        "http://127.0.0.1:5000?x=1",
        "http://127.0.0.1:5000#x",
        "http://127.0.0.1:5000@evil.example",
        "http:///127.0.0.1:5000",
        "//127.0.0.1:5000",
        "127.0.0.1:5000",
        "file:///etc/passwd",
        "unix:///run/docker.sock",
        "ftp://127.0.0.1:21",
        "gopher://127.0.0.1:70",
        "http://[::1",
        "http://[127.0.0.1]:5000",
        "",
        " ",
        "http://\u2460.0.0.1:5000",
    ],
)
def test_anything_else_is_refused_even_from_loopback(url: str) -> None:
    with pytest.raises(AgentAddressRefused) as refused:
        check_agent_url(url, "127.0.0.1", NONE)
    assert refused.value.status == 403
    assert "169.254" not in refused.value.message


@pytest.mark.parametrize(
    ("url", "caller"),
    [
        ("http://127.0.0.1:5000", "192.168.1.9"),
        ("http://127.0.0.1:5000", "::ffff:192.168.1.9"),
        ("http://[::1]:5000", "192.168.1.9"),
        ("http://192.168.1.8:5000", "192.168.1.9"),
        ("http://192.168.1.8:5000", "127.0.0.1"),
        ("http://10.0.0.1:5000", ""),
        ("http://10.0.0.1:5000", "unix-socket"),
    ],
)
def test_another_hosts_address_is_refused(url: str, caller: str) -> None:
    with pytest.raises(AgentAddressRefused, match="ROUTER_AGENT_HOSTS"):
        check_agent_url(url, caller, NONE)


def test_the_operator_may_list_an_address_but_not_a_dangerous_one() -> None:
    allowed = frozenset({"192.168.1.8", "169.254.169.254"})
    assert check_agent_url("http://192.168.1.8:5000", "127.0.0.1", allowed)
    with pytest.raises(AgentAddressRefused):
        check_agent_url("http://169.254.169.254:80", "127.0.0.1", allowed)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://agent:5000", "http://agent:5000"),
        ("http://AGENT:5000/", "http://agent:5000"),
        ("https://host.docker.internal:5055", "https://host.docker.internal:5055"),
    ],
)
def test_the_operator_may_list_a_name(url: str, expected: str) -> None:
    allowed = frozenset({"agent", "host.docker.internal"})
    assert check_agent_url(url, "172.18.0.3", allowed) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://agent.evil.example:5000",
        "http://agent@evil.example:5000",
        "http://evil.example:5000#agent",
        "http://agent:5000/v1",
        "http://agent",
        "http://agent.:5000",
        "http://other:5000",
    ],
)
def test_a_listed_name_lets_no_other_in(url: str) -> None:
    with pytest.raises(AgentAddressRefused):
        check_agent_url(url, "172.18.0.3", frozenset({"agent"}))
