"""What `make k3s-up`, `k3s-down` and `k3s-status` do, step by step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from scripts.devstack.probes import get
from scripts.devstack.text import Waiting, say
from scripts.k3s import doctor, forward, immutable, release
from scripts.k3s.chart import ON_CPUS, SIMULATOR, Chart
from scripts.k3s.choice import Choice, Wish, again, choose_cluster, choose_profile
from scripts.k3s.drivers import Driver
from scripts.k3s.errors import ClusterError, NotReady, ToolFailed, Unreachable
from scripts.k3s.existing import Existing
from scripts.k3s.gpu import offer_gpus
from scripts.k3s.k3d import K3d
from scripts.k3s.machine import Machine
from scripts.k3s.native import Fetch, Native
from scripts.k3s.pins import INSTALLER, Installer
from scripts.k3s.register import SETTING, forget, register
from scripts.k3s.routers import Routers
from scripts.k3s.tools import Tools

_GPU_S = 180.0
_PAUSE_S = 0.2
_ANSWERS = frozenset({200, 401})
"""401: a model server with a key of its own (secrets.apiKey)."""
_LOUD = "SIMULATOR: no model runs. Every answer is made up; use it to try the plumbing only."


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where it all happens."""

    root: Path
    """The checkout."""
    home: Path
    env_file: Path
    environment: Mapping[str, str]
    machine: Machine
    fetch: Fetch
    new_id: Callable[[], str]
    """Makes the id of an installation: a label's value that nobody else has."""
    installer: Installer = INSTALLER
    answer_s: float = 120.0
    """How long the endpoint may take to answer after its pods are ready."""
    router_s: float = 15.0
    """How long a router that runs may take to take the endpoint, or to let it go."""

    @property
    def folder(self) -> Path:
        """Return where our kubeconfig and what was chosen lie."""
        return self.home / "k3s"

    @property
    def record(self) -> Path:
        """Return the file of what was chosen."""
        return self.folder / "choice.json"

    @property
    def kubeconfig(self) -> Path:
        """Return our own kubeconfig."""
        return self.folder / "kubeconfig"

    @property
    def routers(self) -> Routers:
        """Return where routers are looked for."""
        return Routers(
            home=self.home,
            env_file=self.env_file,
            environment=self.environment,
            limit_s=self.router_s,
        )


def up(place: Place, tools: Tools, wish: Wish, *, timeout: str, token: str) -> int:
    """Bring up cluster and llm-d, and end with the line that the router needs."""
    release.need_programs(tools)
    chart = release.chart_of(place.root)
    before = Choice.read(place.record)
    choice = choose_cluster(wish, place.machine, before, chart, place.new_id)
    driver = _driver(place, tools, wish, choice)
    if not isinstance(driver, Existing):
        gpus = driver.gpus(choice)
        choice = choose_profile(wish, place.machine, choice, gpus, chart)
        _announce(place.machine, choice)
        driver.ensure(choice, partial(_remember, place, tools, choice))
        release.wait_for_nodes(tools, driver.look(choice))
    else:
        driver.ensure(choice, partial(_remember, place, tools, choice))
        gpus = driver.gpus(choice)
        choice = choose_profile(wish, place.machine, choice, gpus, chart)
        _announce(place.machine, choice)
    if choice.needs_gpu and isinstance(driver, Native) and driver.is_ours:
        offer_gpus(tools, choice.install, wait_s=_GPU_S)
    release.need_crds(tools, choice, chart.runs(choice.profile, choice.sets).crds)
    release.ensure_namespace(tools, choice)
    choice = replace(choice, has_namespace=True)
    _remember(place, tools, choice)
    values = [
        *driver.values(choice),
        *release.ensure_token(tools, choice, token, is_ours=driver.is_ours),
    ]
    _deploy(place, tools, choice, values, timeout=timeout, chart=chart)
    return _finish(place, tools, choice)


def _driver(place: Place, tools: Tools, wish: Wish, choice: Choice) -> Driver:
    if choice.driver == "native":
        return Native(tools, place.machine, place.fetch, place.installer, install=choice.install)
    if choice.driver == "k3d":
        return K3d(tools, place.machine)
    return Existing(tools, wish.kubeconfig, wish.context, has_release=choice.has_namespace)


def _announce(machine: Machine, choice: Choice) -> None:
    say(_what(choice))
    if choice.engine == SIMULATOR:
        say(_LOUD)
    elif choice.engine == ON_CPUS:
        if machine.gpus and choice.driver == "k3d":
            say(f"The GPU is not used: k3d hands none on. With it: {again('--driver native')}")
        elif machine.system == "Darwin":
            say("Containers have no GPU on a Mac: the processor does it. Faster here: make dev")


def _what(choice: Choice) -> str:
    if not choice.profile:
        return f"driver {choice.driver}, nothing installed yet"
    what = f"driver {choice.driver}, profile {choice.profile}, engine {choice.engine}"
    return f"{what}, {' '.join(choice.sets)}" if choice.sets else what


def _remember(place: Place, tools: Tools, choice: Choice) -> None:
    """Keep what was chosen before anything is made, so that `make k3s-down` finds it."""
    if not tools.is_dry:
        choice.write(place.record)


def _deploy(
    place: Place, tools: Tools, choice: Choice, values: list[str], *, timeout: str, chart: Chart
) -> None:
    try:
        _upgrade(tools, choice, values, timeout=timeout, chart=chart)
    except ToolFailed as failure:
        if not release.release_status(tools, choice.namespace):
            raise  # the chart refused the values: it says which, and no pod is there to look at
        found = doctor.examine(tools, replace(choice, endpoint=""), place.folder)
        say(str(failure))
        if not found:
            raise NotReady(f"No cause was found. {release.DOCTOR}") from None
        say("")
        doctor.tell(found)
        raise NotReady("llm-d did not come up; above is why, and what to do.") from None


def _upgrade(
    tools: Tools, choice: Choice, values: list[str], *, timeout: str, chart: Chart
) -> None:
    """Bring the release to what was chosen; what can't be changed in place is made anew, once."""
    try:
        release.upgrade(tools, choice, values, timeout=timeout, chart=chart)
    except ToolFailed as failure:
        if not immutable.make_way(tools, choice.namespace, str(failure)):
            raise
        release.upgrade(tools, choice, values, timeout=timeout, chart=chart)


def _finish(place: Place, tools: Tools, choice: Choice) -> int:
    """Open the way in, test it, and hand the address over."""
    endpoint = _endpoint(place, tools, choice)
    choice = replace(choice, endpoint=endpoint)
    if not tools.is_dry:
        choice.write(place.record)
        models = _await_answer(endpoint, place.answer_s)
        release.smoke_test(tools, choice.namespace)
        say(f"llm-d answers at {endpoint}, with {', '.join(models) or 'no model'}")
    register(tools, choice, place.routers)
    if choice.engine == SIMULATOR:
        say(_LOUD)
    say(f"{SETTING}={endpoint}")
    return 0


def _endpoint(place: Place, tools: Tools, choice: Choice) -> str:
    if choice.driver == "native":
        if tools.is_dry and not tools.kubeconfig.is_file():
            return "http://CLUSTER-IP:8000"
        return release.cluster_address(tools, choice.namespace)
    if choice.driver == "existing":
        if tools.is_dry:
            say(f"would forward: 127.0.0.1:{choice.port} to the Service llm-d")
        else:
            forward.start(place.folder, choice, place.environment, place.root)
    return f"http://127.0.0.1:{choice.port}"


def _await_answer(endpoint: str, limit_s: float) -> list[str]:
    """Return the names of the models when the endpoint tells them; raises `NotReady`."""
    waiting = Waiting(f"waiting for {endpoint}")
    until = time.monotonic() + limit_s
    try:
        while True:
            status, listing = asyncio.run(get(f"{endpoint}/v1/models"))
            if status in _ANSWERS:
                return _names(listing)
            if time.monotonic() > until:
                said = f"answers {status}" if status else "does not answer"
                raise NotReady(f"The pods are ready, but {endpoint} {said}. {release.DOCTOR}")
            waiting.tick()
            time.sleep(_PAUSE_S)
    finally:
        waiting.clear()


def _names(listing: object) -> list[str]:
    data = listing.get("data") if isinstance(listing, dict) else None
    return [str(one.get("id")) for one in data or [] if isinstance(one, dict)]


def down(place: Place, tools: Tools, *, purge: bool) -> int:
    """Let nothing of ours run any more; with `purge`, take away what we made."""
    choice = Choice.read(place.record)
    if choice is None:
        say("nothing to take down: there was no make k3s-up here")
        return 0
    if tools.is_dry:
        say("would end the forwarding of a port, if it runs")
    elif forward.end(place.folder):
        say("the forwarding of the port has ended")
    driver = _driver(place, tools, Wish(), choice)
    if purge:
        _purge(place, tools, choice, driver)
    elif choice.driver != "k3d" and not choice.has_namespace:
        say("llm-d was not installed yet")
    else:
        say(driver.rest(choice))
        say("Again: make k3s-up. For good: PURGE=1 make k3s-down")
    forget(tools, choice, place.routers)
    return 0


def _purge(place: Place, tools: Tools, choice: Choice, driver: Driver) -> None:
    if driver.is_ours:
        driver.remove(choice)
    elif choice.has_namespace:
        if not tools.is_dry and not tools.kubeconfig.is_file():
            raise ClusterError(
                f"{tools.kubeconfig} is gone, without which nothing can be taken away. Bring it back by make "
                f"k3s-up, then this again; or remove the namespace {choice.namespace} yourself, and forget it: "
                f"rm -r {place.folder}"
            )
        tools.must(
            f"Delete the namespace {choice.namespace} with everything in it, models too?",
            otherwise="Say it beforehand: YES=1 PURGE=1 make k3s-down",
        )
        _remove_release(place, tools, choice)
    if not tools.is_dry:
        tools.kubeconfig.unlink(missing_ok=True)
        place.record.unlink(missing_ok=True)
        say("It is all gone.")


def _remove_release(place: Place, tools: Tools, choice: Choice) -> None:
    try:
        release.remove(tools, choice)
    except Unreachable as failure:
        raise Unreachable(
            f"{failure}\nIf that cluster is gone for good, forget it: rm -r {place.folder}"
        ) from None


def status(place: Place, tools: Tools) -> int:
    """Say what runs; 0 if the endpoint answers."""
    choice = Choice.read(place.record)
    if choice is None:
        say("no cluster of ours: make k3s-up")
        return 1
    say(_what(choice))
    if choice.engine == SIMULATOR:
        say(_LOUD)
    is_there = choice.has_namespace and tools.kubeconfig.is_file()  # else it would be another's
    state = release.release_status(tools, choice.namespace) if is_there else ""
    say(f"release llm-d: {state or 'not there, or the cluster does not answer'}")
    if state:
        pods = tools.read(tools.kubectl("get", "pods", "--namespace", choice.namespace))
        say(pods.output.rstrip() or pods.error.rstrip())
    if choice.driver == "existing":
        say(
            f"port {choice.port}: {'forwarded' if forward.is_running(place.folder) else 'not forwarded'}"
        )
    code, listing = (
        asyncio.run(get(f"{choice.endpoint}/v1/models")) if choice.endpoint else (0, None)
    )
    if code in _ANSWERS:
        say(f"models: {', '.join(_names(listing)) or 'none'}\n{SETTING}={choice.endpoint}")
        return 0
    say(f"{choice.endpoint or 'the endpoint'} does not answer: {release.DOCTOR}")
    return 1


def examine(place: Place, tools: Tools) -> int:
    """Say what is wrong and what to do about it; 0 if nothing is."""
    choice = Choice.read(place.record)
    if choice is None:
        raise ClusterError("There is no cluster of ours to look at: make k3s-up")
    return doctor.tell(doctor.examine(tools, choice, place.folder))
