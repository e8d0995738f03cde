"""The address of llm-d for the router: `LLMD_ENDPOINT` in `.env`, which a running one follows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dotenv import dotenv_values, set_key, unset_key

from scripts.devstack.text import say
from scripts.k3s.choice import Choice
from scripts.k3s.pins import NODE_PORT
from scripts.k3s.routers import AWAY, Routers, container_of, has_cluster, state_of
from scripts.k3s.tools import Tools

SETTING = "LLMD_ENDPOINT"


def register(tools: Tools, choice: Choice, routers: Routers) -> None:
    """Write the setting with consent, and see that the routers which run take it."""
    endpoint, env_file = choice.endpoint, routers.env_file
    set_elsewhere = routers.environment.get(SETTING)
    if set_elsewhere and set_elsewhere != endpoint:
        say(f"The environment sets {SETTING}={set_elsewhere}, which beats .env: unset it.")
    before = _written(env_file)
    if before != endpoint and not _may_write(tools, endpoint, env_file, before):
        say(
            f"Nothing was written. A router takes it at once, or when it starts, after: "
            f"echo '{SETTING}={endpoint}' >> {env_file}"
        )
        return
    if tools.is_dry:
        return
    native, contained = _running(tools, routers)
    keeping = _replace(before, endpoint, native, routers) if before != endpoint else set()
    for url in native:
        _tell(url, endpoint, routers, is_keeping=url in keeping)
    for url, name in contained:
        _tell_container(choice, url, name)
    if not (native or contained):
        say(f"No router runs; it takes {SETTING} from {env_file} when it starts: make up")


def forget(tools: Tools, choice: Choice, routers: Routers) -> None:
    """Take our setting out of `.env`, with consent, and so out of routers that run; another's stays."""
    endpoint, env_file = choice.endpoint, routers.env_file
    if not endpoint or _written(env_file) != endpoint:
        return
    if not tools.may(f"Take {SETTING}={endpoint} out of {env_file}, and of the routers that run?"):
        say(
            f"{env_file} still has {SETTING}={endpoint}: take it out, and running routers let it go"
        )
        return
    if tools.is_dry:
        return
    native, contained = _running(tools, routers)
    having = [url for url in native if state_of(url) is not None]
    unset_key(env_file, SETTING, follow_symlinks=True)
    say(f"{SETTING} is out of {env_file}")
    for url in having:
        if _lets_go(url, routers):
            say(f"The router at {url} has let it go")
        else:
            say(f"The router at {url} still has llmd, and not from {env_file}: {_ELSEWHERE}")
    name_there = _network(choice)
    for url, name in contained:
        if state_of(url, name_there) is not None:
            say(
                f"Out of the router in {name}: docker exec {name} iir providers remove {name_there}"
            )


_ELSEWHERE = (
    f"it may have {SETTING} in its environment, which beats .env (start it again without), "
    "or a row (iir providers list)"
)


def _running(tools: Tools, routers: Routers) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the routers that run, and those in containers with their names: these read no `.env`."""
    native, contained = [], []
    for url in routers.running():
        name = container_of(tools, url)
        if name is None:
            native.append(url)
        else:
            contained.append((url, name))
    return native, contained


def _replace(
    before: str | None, endpoint: str, native: Sequence[str], routers: Routers
) -> set[str]:
    """Write the setting; return the routers that have a cluster `llmd` which it did not name.

    An old address goes first, until the routers have let it go: what they have afterwards is ours.
    """
    having = [url for url in native if state_of(url) is not None]
    try:
        if before and having:
            unset_key(routers.env_file, SETTING, follow_symlinks=True)
            having = [url for url in having if not _lets_go(url, routers)]
    finally:
        set_key(routers.env_file, SETTING, endpoint, quote_mode="never", follow_symlinks=True)
    return set(having)


def _lets_go(url: str, routers: Routers) -> bool:
    what = f"waiting until the router at {url} lets the old address go"
    return routers.wait(url, lambda state: state is None, what) is None


def _tell(url: str, endpoint: str, routers: Routers, *, is_keeping: bool) -> None:
    state = routers.wait(url, has_cluster, f"waiting until the router at {url} has the cluster")
    if is_keeping:
        say(f"The router at {url} had llmd already, and not from {routers.env_file}: {_ELSEWHERE}")
    elif state is not None:
        say(f"The router at {url} has the cluster now: llmd is {state}")
    else:
        say(
            f"The router at {url} did not take it: it reads another file than {routers.env_file}, or is of "
            f"another version. Start it again with {SETTING}={endpoint}"
        )


def _tell_container(choice: Choice, url: str, name: str) -> None:
    """Say how a router in a container gets the cluster; its loopback is not this machine's."""
    where = f"The router at {url} runs in the container {name}, which"
    if choice.driver == "native":
        say(f"{where} has .env as it was when it was made: make docker-dev makes it anew")
        return
    if choice.driver != "k3d":
        say(
            f"{where} does not reach {choice.endpoint}: use one outside (make docker-down && make up)"
        )
        return
    network = _network(choice)
    state = state_of(url, network)
    if state is not None and state != AWAY:
        say(f"The router at {url} has the cluster: {network} is {state}")
        return
    words = [f"docker network connect {network} {name}"]
    if state is None:
        words.append(
            f"docker exec {name} iir providers add {network} --dialect llmd --zone cluster "
            f"--base-url http://{network}-server-0:{NODE_PORT}"
        )
    say(f"{where} does not reach {choice.endpoint}. By Docker's network it does, at once:")
    say(f"  {' && '.join(words)}")


def _network(choice: Choice) -> str:
    """Return the name of the network of a k3d cluster."""
    return f"k3d-{choice.cluster}"


def _may_write(tools: Tools, endpoint: str, env_file: Path, before: str | None) -> bool:
    instead = f" in place of {before}" if before else ""
    return tools.may(
        f"Write {SETTING}={endpoint} into {env_file}{instead}, for the router that runs or starts?"
    )


def _written(env_file: Path) -> str | None:
    return dotenv_values(env_file).get(SETTING) if env_file.is_file() else None
