"""`iir-agent service`: the agent starts with its user's session, and again when it fails."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from local_agent.cli.context import CommandFailed, Context, Json, open_context, plain_errors
from local_agent.config_file import ConfigError
from local_agent.control.identity import IdentityTaken, hold_identity
from local_agent.doctor.local_network import is_local_network
from local_agent.service import files
from local_agent.service.control import (
    Launchd,
    ServiceManager,
    ServiceProblem,
    Systemd,
    run_command,
)
from local_agent.service.definition import UNIT, Definition, define, plist_path, unit_path
from local_agent.settings import AgentSettings
from local_agent.this_host import drain_limit_s
from shared.kit.home import service_folder

app = typer.Typer(help="The agent as a service of this user.", no_args_is_help=True)

_CARRIED = ("agent_config", "agent_token_file", "router_ca_file")
_STOP_FIRST = "stop it first (Ctrl-C where it runs, or make down), then install the service"


@dataclass(frozen=True, slots=True)
class Host:
    """How this system carries services: by what, from which file, and where the log is."""

    manager: ServiceManager
    path: Path
    log: str


@app.command()
def install(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the file, and change nothing.")
    ] = False,
) -> None:
    """Start the agent now and with every session of this user; once more replaces and restarts it."""
    with plain_errors(), plain_problems():
        context = open_context()
        service = definition(context)
        host = this_system(context, service)
        content = host.manager.content(service)
        if dry_run:
            typer.echo(content.decode(), nl=False)
            return
        _refuse_second(context, host)
        _refuse_loss(files.read(host.path) or b"", content)
        files.make_room(service.log)
        with _taken_back(host), files.replaced(host.path, content) as is_new:
            host.manager.start(host.path)
        typer.echo(f"{'wrote' if is_new else 'kept'} {host.path}")
        typer.echo(f"started; its log: {host.log}")
        for line in advice(context):
            typer.echo(line)


@app.command()
def uninstall() -> None:
    """Stop the agent and start it no more; models, credential and settings stay."""
    with plain_errors(), plain_problems():
        context = open_context()
        host = this_system(context, definition(context))
        is_there = host.path.exists()
        try:
            if is_there or sys.platform == "darwin":
                host.manager.stop()
        finally:
            host.path.unlink(missing_ok=True)  # whatever else happens, no login starts it again
            if is_there:
                host.manager.forget()
        typer.echo(f"removed {host.path}" if is_there else "there was no service")


@app.command()
def status(as_json: Json = False) -> None:
    """Show whether the service is installed and runs; exit 1 if it does not run."""
    with plain_errors(as_json=as_json), plain_problems():
        context = open_context()
        service = definition(context)
        host = this_system(context, service)
        content = files.read(host.path)
        state = host.manager.state() if content is not None else None
        is_current = content == host.manager.content(service)
        pid = None if state is None else state.pid
        found = {
            "is_installed": content is not None,
            "is_current": is_current,
            "pid": pid,
            "last_exit_code": None if state is None else state.exit_code,
            "file": str(host.path),
            "log": host.log,
        }
        typer.echo(json.dumps(found) if as_json else _shown(found))
    if pid is None:
        raise typer.Exit(1)


@contextmanager
def _taken_back(host: Host) -> Iterator[None]:
    """Have what ran before run again, if what is done meanwhile fails and its file is there again."""
    try:
        yield
    except BaseException:
        if host.path.exists():
            with suppress(ServiceProblem):
                host.manager.start(host.path)
        else:
            host.manager.forget()
        raise


def _refuse_loss(before: bytes, content: bytes) -> None:
    """Refuse to replace a service by one that would read other files than it does now.

    Raises:
        CommandFailed: it has a setting that this shell has not.
    """
    lost = [
        name.upper()
        for name in _CARRIED
        if name.upper().encode() in before and name.upper().encode() not in content
    ]
    if lost:
        raise CommandFailed(
            f"the service that is there has {', '.join(lost)}, which is not set here: set it as it was, or"
            " give it up by iir-agent service uninstall first"
        )


def definition(context: Context) -> Definition:
    """Return the agent of this installation, with this IIR_HOME, as a service.

    Raises:
        CommandFailed: it can't be one.
    """
    settings = context.settings
    script = Path(sys.executable).with_name("iir-agent")
    command = (str(script),) if script.exists() else (sys.executable, "-m", "local_agent")
    paths = {name: getattr(settings, name) for name in _CARRIED}
    try:
        drain_s = drain_limit_s(settings, context.config())
    except ConfigError:
        drain_s = settings.agent_drain_s  # the agent itself will say what is wrong with the file
    try:
        return define(
            (*command, "serve"),
            variables={
                "IIR_HOME": str(settings.iir_home),
                **{
                    name.upper(): str(path.expanduser().absolute())
                    for name, path in paths.items()
                    if path is not None
                },
            },
            folder=service_folder(settings.iir_home),
            log=settings.iir_home / "logs" / "agent.log",
            drain_s=drain_s,
        )
    except ValueError as error:
        raise CommandFailed(str(error)) from None


def this_system(context: Context, service: Definition) -> Host:
    """Return how this system carries services.

    Raises:
        CommandFailed: it does not.
    """
    run = partial(run_command, stop_s=service.stop_s)
    if sys.platform == "darwin":
        launchd = Launchd(run, time.sleep, stop_s=service.stop_s)
        return Host(launchd, plist_path(), context.show(service.log))
    if sys.platform == "linux":
        path = unit_path(context.settings.environment())
        return Host(Systemd(run), path, f"journalctl --user -u {UNIT}")
    raise CommandFailed("services are made on macOS (launchd) and Linux (systemd) only")


def advice(context: Context) -> Iterator[str]:
    """Yield what the user should know: nothing of it was done for them."""
    settings = context.settings
    left = _left_behind(settings)
    if left:
        where = context.show(service_folder(settings.iir_home) / ".env")
        yield f"set in this shell, and not for the service: {', '.join(left)}; put them into {where}"
    if sys.platform == "linux":
        yield "it ends when you log out; `loginctl enable-linger` keeps it running"
    elif is_local_network(settings.router_url):
        yield (
            "macOS may block it from the local network without asking: if `iir agents list` does not show "
            "it, see System Settings, Privacy & Security, Local Network"
        )


def _left_behind(settings: AgentSettings) -> list[str]:
    """Return the names of settings that this shell has and the service won't; no value is read."""
    carried = {"IIR_HOME", *(name.upper() for name in _CARRIED)}
    known = {name.upper() for name in type(settings).model_fields} - carried
    return sorted(known & settings.environment().keys())


def _refuse_second(context: Context, host: Host) -> None:
    """Refuse where an agent runs already that is not the service's: two can't share an IIR_HOME."""
    if files.read(host.path) is not None and host.manager.state().pid is not None:
        return
    try:
        with hold_identity(context.settings.iir_home / "agent"):
            return
    except IdentityTaken:
        message = f"an agent with this IIR_HOME runs already: {_STOP_FIRST}"
        raise CommandFailed(message) from None


def _shown(found: Mapping[str, object]) -> str:
    if not found["is_installed"]:
        return "not installed: iir-agent service install"
    pid, code = found["pid"], found["last_exit_code"]
    lines = [f"runs, process {pid}" if pid is not None else "does not run"]
    if code is not None:
        lines.append(f"last exit code {code}")
    if not found["is_current"]:
        lines.append("its file is not of this installation: iir-agent service install")
    return "\n".join([*lines, f"file: {found['file']}", f"log: {found['log']}"])


@contextmanager
def plain_problems() -> Iterator[None]:
    """Turn what the service manager and the disk say into one line, and what no file can hold."""
    try:
        yield
    except (ServiceProblem, ValueError) as error:
        raise _failed(str(error)) from None
    except OSError as error:
        raise _failed(f"{error.strerror or error}: {error.filename}") from None


def _failed(message: str) -> typer.Exit:
    typer.echo(f"iir-agent: {message}", err=True)
    return typer.Exit(1)
