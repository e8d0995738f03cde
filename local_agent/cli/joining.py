"""`iir-agent join` and `iir-agent rotate`: the credential for the router."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from typing import Annotated

import httpx
import typer

from local_agent.cli.context import CommandFailed, Context, open_context, plain_errors
from local_agent.control.credential import (
    Credential,
    is_same_router,
    load_credential,
    save_credential,
)
from local_agent.control.joining import JoinFailed, JoiningClient, travels_in_the_clear
from local_agent.control.trust import CaFileUnusable, router_trust
from local_agent.settings import AgentSettings
from shared.contracts.agents import CredentialGrant

_TIMEOUT_S = 10.0
_MOST_TOKEN = 256


def join(
    url: Annotated[str, typer.Argument(help="The router's address, like https://HOST:8000.")],
    token: Annotated[
        str | None,
        typer.Argument(
            help="The join token; `-` reads it from the input, without it IIR_JOIN_TOKEN counts. "
            "As an argument other users of this machine can see it."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The agent's name (AGENT_NAME).")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give up the credential for another router.")
    ] = False,
) -> None:
    """Join a router with a token of `iir agents invite`; keep the credential that it gives."""
    with plain_errors():
        context = open_context()
        settings = context.settings
        router_url = _checked_url(url)
        present = _present(context, router_url, is_replacing=replace)
        secret = _token(token, settings)
        _warn_in_the_clear(router_url)
        try:
            with closing(_client(router_url, settings)) as router:
                grant = router.join(secret, name or settings.agent_name, present)
                is_used = _keep(context, router, grant, router_url)
        except JoinFailed as error:
            raise CommandFailed(str(error)) from None
        typer.echo(f"joined {router_url} as {grant.name}")
        _say_kept(context, is_used=is_used)
        if "router_url" in settings.model_fields_set and not is_same_router(
            settings.router_url, router_url
        ):
            typer.echo(
                "ROUTER_URL names another router and beats this one: unset it, or change it.",
                err=True,
            )
        if settings.router_ca_file is not None:
            typer.echo("`iir-agent serve` needs ROUTER_CA_FILE, too.")
        typer.echo("Next: `iir-agent serve`; an agent that runs already takes it up by itself.")


def rotate() -> None:
    """Exchange the credential for the router for a new one; the old one ends."""
    with plain_errors():
        context = open_context()
        found = load_credential(context.settings.token_path)
        if found is None:
            raise CommandFailed("there is no credential to exchange; `iir-agent join` gets one")
        router_url = _router_of(found, context.settings)
        _warn_in_the_clear(router_url)
        try:
            with closing(_client(router_url, context.settings)) as router:
                grant = router.rotate(found.secret)
                is_used = _keep(context, router, grant, found.router_url)
        except JoinFailed as error:
            raise CommandFailed(str(error)) from None
        typer.echo(f"{grant.name} has a new credential for {router_url}")
        _say_kept(context, is_used=is_used)


def _keep(
    context: Context, router: JoiningClient, grant: CredentialGrant, router_url: str | None
) -> bool:
    """Keep the credential first and use it then: only that ends the one before."""
    try:
        save_credential(context.settings.token_path, Credential(grant.credential, router_url))
    except OSError as error:
        raise CommandFailed(
            f"the credential can't be kept ({error.strerror}); the one before it, if any, still works"
        ) from None
    return router.confirm(grant.credential)


def _say_kept(context: Context, *, is_used: bool) -> None:
    place = context.show(context.settings.token_path)
    typer.echo(f"The credential is kept in {place}, readable by you only.")
    if not is_used:
        typer.echo(
            "The router did not confirm it yet; one before it works until the agent has used this one.",
            err=True,
        )


def _client(router_url: str, settings: AgentSettings) -> JoiningClient:
    try:
        http = httpx.Client(
            base_url=router_url,
            timeout=_TIMEOUT_S,
            trust_env=False,
            verify=router_trust(settings.router_ca_file),
        )
    except httpx.InvalidURL:
        raise CommandFailed("the router's address is not a URL", code=2) from None
    except CaFileUnusable as error:
        raise CommandFailed(str(error), code=2) from None
    return JoiningClient(http, time.sleep)


def _checked_url(url: str) -> str:
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL:
        found = httpx.URL("")
    is_bare = not (found.userinfo or found.query or found.fragment)
    if found.scheme not in {"http", "https"} or not found.host or not is_bare or " " in url:
        raise CommandFailed("the router's address must read like https://HOST:8000", code=2)
    return url.rstrip("/")


def _present(context: Context, router_url: str, *, is_replacing: bool) -> str | None:
    """Return the credential for this very router; another router never gets to see it.

    Raises:
        CommandFailed: there is one for another router, or a file that holds something else.
    """
    path = context.settings.token_path
    found = load_credential(path)
    if found is not None and is_same_router(_router_of(found, context.settings), router_url):
        return found.secret
    if is_replacing or not (found is not None or path.exists()):
        return None
    if found is None:
        raise CommandFailed(
            f"{context.show(path)} holds no readable credential; --replace overwrites it"
        )
    raise CommandFailed(
        f"there is a credential for another router ({_router_of(found, context.settings)}); "
        "--replace gives it up"
    )


def _router_of(credential: Credential, settings: AgentSettings) -> str:
    return credential.router_url or settings.router_url


def _token(given: str | None, settings: AgentSettings) -> str:
    if given is None and settings.iir_join_token is not None:
        return settings.iir_join_token.get_secret_value().strip()
    if given is not None and given != "-":
        return given.strip()
    if sys.stdin.isatty():
        return str(typer.prompt("join token", hide_input=True, err=True)).strip()
    if given is None:
        raise CommandFailed(
            "a join token is needed: as IIR_JOIN_TOKEN, or `-` to read it from the input. "
            "`iir agents invite` makes one on the router's machine",
            code=2,
        )
    return sys.stdin.readline(_MOST_TOKEN + 2).strip()


def _warn_in_the_clear(router_url: str) -> None:
    if travels_in_the_clear(router_url):
        typer.echo(
            "warning: http to another machine: token and credential travel in the clear, and whoever "
            "reads along can use them. Put TLS in front of the router and use https, or a tunnel.",
            err=True,
        )
