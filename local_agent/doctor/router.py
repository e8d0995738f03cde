"""The router and the credential for it. The credential goes only where the agent sends it too."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit, urlunsplit

import httpx
from pydantic import ValidationError

from local_agent.control.credential import (
    Credential,
    is_exposed,
    is_same_router,
    load_credential,
)
from local_agent.control.joining import travels_in_the_clear
from local_agent.control.trust import CaFileUnusable, has_no_route, router_trust
from local_agent.doctor.agent import RunningState
from local_agent.doctor.finding import Finding
from local_agent.doctor.local_network import examine_local_network
from local_agent.settings import AgentSettings
from shared.contracts.agents import PROTOCOL_VERSION, Confirmation
from shared.http.origin import is_loopback
from shared.kit.clock import Clock

_TIMEOUT_S = 5.0
_MOST_SKEW_S = 30.0
_CONFIRM = "/internal/v1/agents/confirm"
_JOIN = "on the router's machine: iir agents invite; here: iir-agent join URL"


def examine_router(
    settings: AgentSettings,
    wall: Clock,
    transport: httpx.BaseTransport | None = None,
    *,
    state: RunningState | None = None,
    system: str = sys.platform,
) -> Iterator[Finding]:
    """Yield how it stands with the credential and the router.

    Args:
        settings: of the agent.
        wall: seconds since 1970.
        transport: how to reach the router; default: the network, without a proxy.
        state: what the agent that runs here says of itself.
        system: the operating system, as `sys.platform` names it.
    """
    credential = load_credential(settings.token_path)
    url = _router_url(settings, credential)
    yield from _file(settings, credential)
    try:
        trust = router_trust(settings.router_ca_file)
    except CaFileUnusable as error:
        yield Finding("router", "problem", str(error), "mend ROUTER_CA_FILE, or unset it")
        return
    with httpx.Client(
        base_url=url, timeout=_TIMEOUT_S, trust_env=False, verify=trust, transport=transport
    ) as client:
        shown = _without_user(url)
        answer = _ask(client)
        reached = list(_reach(answer, shown, wall, is_needed=credential is not None))
        yield from reached
        yield from examine_local_network(
            system,
            shown,
            state,
            is_reached=isinstance(answer, httpx.Response),
            had_no_route=isinstance(answer, Exception) and has_no_route(answer),
        )
        if credential is not None and all(finding.level != "problem" for finding in reached):
            yield from _show(client, shown, credential)


def _without_user(url: str) -> str:
    """Return a URL without the user and the password that may be in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _router_url(settings: AgentSettings, credential: Credential | None) -> str:
    """Return where the agent looks for its router: a ROUTER_URL that is set beats the credential's."""
    if "router_url" in settings.model_fields_set or credential is None:
        return settings.router_url
    return credential.router_url or settings.router_url


def _file(settings: AgentSettings, credential: Credential | None) -> Iterator[Finding]:
    path = settings.token_path
    shown = settings.show(path)
    if credential is None and path.exists():
        text = f"{shown} holds no readable credential"
        yield Finding("credential", "problem", text, "iir-agent join URL --replace")
    elif credential is None:
        yield _without(settings)
    elif is_exposed(path):
        text = f"others can read {shown}"
        fix = "iir-agent rotate: a new credential, readable by you only"
        yield Finding("credential", "problem", text, fix)
    else:
        yield Finding("credential", "ok", f"{shown} is there, readable by its owner only")
    told = credential.router_url if credential else None
    if told is not None and not is_same_router(told, _router_url(settings, credential)):
        beats = _without_user(settings.router_url)
        text = f"the credential is for {told}; ROUTER_URL is {beats} and beats it"
        yield Finding("credential", "note", text, "unset ROUTER_URL, or join that router")


def _without(settings: AgentSettings) -> Finding:
    if is_loopback(settings.agent_host):
        text = "there is none: no router knows this agent, which serves its own machine only"
        return Finding("credential", "note", text, _JOIN)
    text = "there is none, and AGENT_HOST is a network's: the agent refuses to start"
    return Finding("credential", "problem", text, f"set AGENT_HOST=127.0.0.1, or {_JOIN}")


def _ask(client: httpx.Client) -> httpx.Response | Exception:
    try:
        return client.get("/readyz")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return error


def _reach(
    answer: httpx.Response | Exception, url: str, wall: Clock, *, is_needed: bool
) -> Iterator[Finding]:
    if travels_in_the_clear(url):
        text = f"{url} is http to another machine: the credential can be read on the way"
        yield Finding("router", "note", text, "put TLS in front of the router, and use https")
    if isinstance(answer, Exception):
        yield _unreachable(url, answer, is_needed=is_needed)
        return
    status = _status(answer)
    if status is None:
        text = f"what answers at {url} is no router (it said {answer.status_code})"
        yield Finding("router", "problem", text, "set ROUTER_URL, or join the right one")
        return
    if status == "ready":
        yield Finding("router", "ok", f"{url} is ready")
    else:
        yield Finding("router", "note", f"{url} is {status}", "try again in a moment")
    yield from _clock(answer, wall)


def _unreachable(url: str, error: Exception, *, is_needed: bool) -> Finding:
    cause = error.__cause__
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        text = f"the certificate of {url} is not trusted: {cause.verify_message}"
        fix = "set ROUTER_CA_FILE to the certificate of its authority; it has to name this address"
        return Finding("router", "problem", text, fix)
    if cause is not None:
        text = f"{url} does not speak TLS as expected"
        return Finding("router", "problem", text, "is it http? Then join http://…")
    if isinstance(error, httpx.TimeoutException):
        why = f"did not answer within {_TIMEOUT_S:.0f} s"
    elif isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        why = "does not answer in http (if it speaks TLS, use https)"
    else:
        why = "can't be reached"
    fix = "start it there: iir serve; or join another: iir-agent join URL"
    return Finding("router", "problem" if is_needed else "note", f"{url} {why}", fix)


def _status(answer: httpx.Response) -> str | None:
    """Return what a router says of itself; None if this is none."""
    try:
        body = answer.json()
    except ValueError:
        return None
    is_router = answer.status_code in {200, 503} and isinstance(body, dict) and "registry" in body
    return str(body.get("status"))[:32] if is_router else None


def _clock(answer: httpx.Response, wall: Clock) -> Iterator[Finding]:
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return
    skew = wall() - theirs
    if abs(skew) > _MOST_SKEW_S:
        text = f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the router's"
        yield Finding("clock", "note", text, "let both set their clocks by NTP")


def _show(client: httpx.Client, url: str, credential: Credential) -> Iterator[Finding]:
    """Use the credential as the agent does, which ends the one before if it was rotated."""
    headers = {
        "authorization": f"Bearer {credential.secret}",
        "content-type": "application/json",
    }
    try:
        answer = client.post(_CONFIRM, content="{}", headers=headers)
        if answer.status_code == 200:
            yield from _confirmed(Confirmation.model_validate_json(answer.content), url)
            return
    except (httpx.HTTPError, ValidationError):
        yield Finding("credential", "note", f"{url} could not be asked about it", "try again")
        return
    if answer.status_code in {401, 403}:
        text = f"{url} refuses it: it was revoked, exchanged, or is another router's"
        yield Finding("credential", "problem", text, _JOIN)
    else:
        text = f"{url} does not say whether it accepts it (it said {answer.status_code})"
        yield Finding("credential", "note", text, "install the same release on both sides")


def _confirmed(found: Confirmation, url: str) -> Iterator[Finding]:
    yield Finding("credential", "ok", f"{url} accepts it and calls this agent {found.name}")
    if found.protocol is None:
        text = "the router is of an older release and does not tell its protocol"
        yield Finding("protocol", "note", text, "install the same release on both sides")
    elif found.protocol != PROTOCOL_VERSION:
        text = f"the router speaks version {found.protocol} of the lease protocol, this agent {PROTOCOL_VERSION}"
        yield Finding("protocol", "problem", text, "install the same release on both sides")
    else:
        text = f"version {found.protocol} on both sides (router {found.release or 'unknown'})"
        yield Finding("protocol", "ok", text)
