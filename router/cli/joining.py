"""`iir agents invite`: a one-time token, and the command for the other machine."""

from __future__ import annotations

import re
import socket
from typing import Annotated, Final

import typer

from router.cli.output import AsJson, date, write_json
from router.cli.session import write
from router.settings import Settings, load_settings
from router.store import joining
from router.store.errors import InvalidValue
from shared.http.origin import is_loopback
from shared.kit.run_file import read_run_file

_SPAN: Final = re.compile(r"(\d{1,7})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Reserved for documentation (RFC 5737): nothing is sent there, the route is looked up only.
_ELSEWHERE: Final = ("192.0.2.1", 9)


def invite(
    name: Annotated[
        str | None, typer.Option(help="The agent's name; by default as it calls itself.")
    ] = None,
    expires: Annotated[str, typer.Option(help="How long it may be used (90s, 10m, 1h, 7d).")] = (
        "1h"
    ),
    url: Annotated[
        str | None, typer.Option(help="The router's address as the other machine reaches it.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write the token alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a token by which one agent joins, once. It is shown now and never again."""
    lasts_s = parse_span(expires)
    settings = load_settings()
    router_url = (url or own_url(settings)).rstrip("/")
    token, shown = write(lambda c: joining.invite(c, name, lasts_s), settings)
    if quiet:
        typer.echo(token)
        return
    command = f"iir-agent join {router_url} -"
    if as_json:
        found = {"token": token, "prefix": shown.prefix, "name": name, "router_url": router_url}
        write_json({**found, "command": command, "expires_at": shown.expires_at})
        return
    typer.echo(f"join token, good once until {date(shown.expires_at)} (UTC); shown only now:")
    typer.echo(token)
    typer.echo("On the agent's machine run this, and give it the token when it asks:")
    typer.echo(f"  {command}")
    if is_loopback(_host(router_url)):
        typer.echo(
            "This address works on this machine only; for others the router has to listen on a "
            "network (ROUTER_HOST), and --url names its address.",
            err=True,
        )


def parse_span(text: str) -> int:
    """Return a span like `90s`, `10m`, `1h` or `7d` in seconds.

    Raises:
        InvalidValue: it is none.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InvalidValue("--expires takes a span: 90s, 10m, 1h or 7d")
    return int(found[1]) * _SECONDS[found[2]]


def own_url(settings: Settings) -> str:
    """Return the router's address, as far as it can be told from here."""
    running = read_run_file(settings.iir_home / "run" / "router.json")
    host = settings.router_host if running is None or running.host is None else running.host
    port = settings.router_port if running is None else running.port
    if host in {"0.0.0.0", "::"}:
        host = _outward_address()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _outward_address() -> str:
    """Return the address from which this machine would call another one."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_ELSEWHERE)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _host(url: str) -> str:
    rest = url.split("://", 1)[-1].split("/", 1)[0]
    return rest[1:].split("]", 1)[0] if rest.startswith("[") else rest.split(":", 1)[0]
