"""`iir-agent pull`: what to pull, the pull, and the model's entry in the agent's file."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local_agent.cli.context import CommandFailed, Context
from local_agent.cli.following import Stopped, pull_by_agent
from local_agent.config import AgentConfig
from local_agent.config_file import ConfigError, parse_config
from local_agent.control.identity import load_agent_id
from local_agent.domain import ModelId
from local_agent.pulls.puller import ModelPuller, Needed, Pulled, needed, to_remove
from local_agent.this_host import model_puller, this_host
from local_agent.weights.files import disk_errors
from local_agent.weights.progress import OnProgress
from local_agent.weights.source import Source, looks_like_source, parse_source
from local_agent.yaml_text import YamlError, append_entry
from shared.kit.logs import configure_logs
from shared.kit.whole_file import write_whole

_STOPPED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A model to pull; `text` is the agent's new file if the model is not in it yet.

    `needed` is None for a model of the file: a running agent may know better what that needs.
    """

    model: ModelId
    needed: Needed | None = None
    text: str | None = None


def choose(
    context: Context, name: str, *, model_id: str | None, sha256: str | None, file: str | None
) -> Wanted:
    """Find out what to pull: a configured model, or a source with a name for it.

    Raises:
        CommandFailed, ConfigError, PullError: it can't be told, or contradicts the agent's file.
    """
    config = context.config()
    if not looks_like_source(name):
        return _configured(config, name, has_extras=any((model_id, sha256, file)))
    source = parse_source(name, base=Path.cwd(), sha256=sha256, member=file)
    wanted_id = model_id or _with_source(config, source)
    known = config.find(wanted_id)
    if known is None:
        entry = _entry(wanted_id, source, sha256, file)
        text = _file_with(context, entry)
        model = ModelId(wanted_id)
        return Wanted(model=model, needed=Needed(model=model, sources=(source,)), text=text)
    if source.ref not in [each.ref for each in known.sources]:
        raise CommandFailed(
            f"{wanted_id} is a model already, with another source: choose another --id, or change "
            f"its `source` in {context.show(context.settings.config_path)}",
            code=2,
        )
    return Wanted(model=ModelId(known.id))


def pull(context: Context, wanted: Wanted, on_progress: OnProgress) -> Pulled:
    """Pull, and then add the model to the agent's file; return what that gave.

    A running agent pulls what its file names. A source that is not in the file is pulled here, since
    nobody may name one to the agent.

    Raises:
        PullError: by cause.
        AgentRefused, AgentUnreachable: so does the agent's pull.
        CommandFailed: it was stopped by a signal.
    """
    settings = context.settings
    base_url = None if wanted.text else context.agent.url_if_known(wanted.model)
    try:
        if base_url is not None:
            return pull_by_agent(base_url, wanted.model, on_progress)
        what = wanted.needed or _needed(context, wanted.model)
        pulled = asyncio.run(_stoppable(context, what, on_progress))
    except (asyncio.CancelledError, KeyboardInterrupt, Stopped):
        raise CommandFailed(
            "stopped; the same command goes on where it was", code=_STOPPED
        ) from None
    if wanted.text is not None:
        target = settings.config_path.resolve()
        with disk_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, wanted.text)
    return pulled


def remove(context: Context, name: str) -> ModelId:
    """Remove what was pulled for a model, by the agent if one runs that knows it.

    Raises:
        PullError, AgentRefused, AgentUnreachable: by cause.
        CommandFailed: there is nothing to remove.
    """
    config = context.config()
    found = config.find(name)
    model = ModelId(name if found is None else found.id)
    if context.agent.url_if_known(model) is not None:
        context.agent.remove_weights(model)
        return model
    if found is None or found.sources:
        is_removed = context.store.remove(model)
    else:
        wanted = to_remove(config, context.store, this_host(context.settings), model)
        is_removed = asyncio.run(_puller(context, wanted).remove(wanted))
    if not is_removed:
        raise CommandFailed(f"there are no weights of {model} to remove")
    return model


def _puller(context: Context, wanted: Needed) -> ModelPuller:
    settings = context.settings
    if wanted.container is not None:
        configure_logs(level="warning")  # which engine was found is no answer of a command
    return model_puller(settings, load_agent_id(settings.iir_home / "agent"))


def _needed(context: Context, model: ModelId) -> Needed:
    return needed(context.config(), context.store, this_host(context.settings), model)


async def _stoppable(context: Context, wanted: Needed, on_progress: OnProgress) -> Pulled:
    task = asyncio.ensure_future(_puller(context, wanted).pull(wanted, on_progress))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    return await task


def _configured(config: AgentConfig, name: str, *, has_extras: bool) -> Wanted:
    model = config.find(name)
    if model is None:
        known = ", ".join(model.id for model in config.models)
        raise CommandFailed(
            f"no model is named {name!r}; known: {known}. For another one, give a source "
            "(hf:ORG/REPO:FILE or a path) and --id NAME",
            code=2,
        )
    if has_extras:
        raise CommandFailed("--id, --sha256 and --file go with a source, not with a model", code=2)
    return Wanted(model=ModelId(model.id))


def _with_source(config: AgentConfig, source: Source) -> str:
    for model in config.models:
        if source.ref in [each.ref for each in model.sources]:
            return model.id
    raise CommandFailed("say how to call the model: --id NAME", code=2)


def _entry(
    model_id: str, source: Source, sha256: str | None, file: str | None
) -> dict[str, object]:
    where: dict[str, object] = {"from": source.ref}
    if sha256 is not None:
        where["sha256"] = source.sha256
    if file is not None:
        where["file"] = file
    return {"id": model_id, "source": where if len(where) > 1 else source.ref}


def _file_with(context: Context, entry: dict[str, object]) -> str:
    """Return the agent's file with one more model, checked as a whole before anything is pulled."""
    path = context.settings.config_path
    shown = context.show(path)
    with _config_errors(shown):
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        text = append_entry(before, "models", entry)
    env = context.settings.environment()
    parse_config(text, env, name=path.name, base=path.absolute().parent)
    return text


@contextlib.contextmanager
def _config_errors(shown: str) -> Iterator[None]:
    try:
        yield
    except YamlError as error:
        raise ConfigError(shown, f"{error}: add the model to it by hand") from None
    except OSError as error:
        raise ConfigError(shown, f"can't be read: {error.strerror}") from None
