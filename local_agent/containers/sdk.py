"""A container engine through the Docker SDK: the only module that knows the SDK."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig
from requests.exceptions import RequestException

from local_agent.containers.address import Address
from local_agent.containers.causes import image_refusal, program_refusal, refusal
from local_agent.containers.launcher import WORKER
from local_agent.ports import (
    ContainerError,
    ContainerHost,
    ContainerSpec,
    ContainerView,
    Launch,
)
from shared.kit.logs import get_logger

_LOG_BYTES = "10m"
_BEING_REMOVED = re.compile(r"removal of container .* is already in progress", re.IGNORECASE)
# a registry may be silent for a while; who waits for the pull has a limit of its own
_PULL_SILENT_S = 600.0


def connect(addresses: Sequence[Address], timeout_s: float, network: str = "") -> DockerClient:
    """Return a client of the first engine that answers.

    Args:
        addresses: where to ask, in order.
        timeout_s: how long any call may take.
        network: on which containers are reached; empty: they are published on 127.0.0.1.

    Raises:
        ContainerError: none does.
    """
    for address in addresses:
        if (client := _answering(address, timeout_s, network)) is not None:
            return client
    tried = ", ".join(dict.fromkeys(address.source for address in addresses))
    raise ContainerError(
        (
            f"no container engine answers (tried: {tried}); start it"
            if tried
            else "no container engine was found; start Docker, Colima, OrbStack or Podman, or set DOCKER_HOST"
        ),
        is_unreachable=True,
    )


def _answering(address: Address, timeout_s: float, network: str) -> DockerClient | None:
    if address.url.startswith("unix://") and not _listens(address.url[7:], timeout_s):
        return None
    try:
        # asks for the engine's version, so it fails where nobody answers
        api = docker.APIClient(base_url=address.url, version="auto", timeout=timeout_s)
    except (DockerException, RequestException):
        return None
    get_logger("agent").info("container_engine", found=address.source, api=api.api_version)
    return DockerClient(api, address, timeout_s, network)


def _listens(path: str, timeout_s: float) -> bool:
    """Tell whether somebody listens on a socket; many are left by engines that are off."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(timeout_s)
        try:
            probe.connect(path)
        except OSError:  # a path that is too long for a socket is one too
            return False
        return True


class DockerClient:
    """`ContainerClient` over the SDK."""

    def __init__(self, api: Any, address: Address, timeout_s: float, network: str) -> None:
        self._api = api
        self._network = network
        self._address = address
        self._timeout_s = timeout_s

    def find(self, labels: Mapping[str, str]) -> list[ContainerView]:
        """See `ContainerClient.find`."""
        wanted = [f"{name}={value}" for name, value in labels.items()]
        with self._named():
            found = self._api.containers(all=True, filters={"label": wanted})
        views = (self.look(item["Id"]) for item in found)
        return [view for view in views if view is not None]

    def look(self, container: str) -> ContainerView | None:
        """See `ContainerClient.look`."""
        with self._named():
            try:
                data = self._api.inspect_container(container)
            except NotFound:
                return None
        state = data["State"]
        return ContainerView(
            id=data["Id"],
            labels=data["Config"].get("Labels") or {},
            is_running=state["Running"],
            pid=state.get("Pid", 0),
            exit_code=state.get("ExitCode", 0),
            is_out_of_memory=state.get("OOMKilled", False),
            addresses=_addresses(data),
        )

    def start(
        self,
        name: str,
        launch: Launch,
        *,
        env: Mapping[str, str],
        labels: Mapping[str, str],
        port: int,
    ) -> str:
        """See `ContainerClient.start`; a container that does not start is removed."""
        spec = launch.container
        assert spec is not None  # noqa: S101 - the launcher sends no processes here
        model = labels.get(WORKER, "")
        with self._named(
            lambda error: refusal(error.status_code or 0, _said(error), spec, port, model)
        ):
            made = self._api.create_container(
                image=spec.image,
                command=list(launch.argv),
                environment=dict(env),
                labels=dict(labels),
                name=name,
                ports=[spec.port],
                volumes=list(spec.volumes.values()),
                host_config=self._host_config(launch, port),
            )["Id"]
            self._start(made)
        return str(made)

    def run_program(
        self,
        name: str,
        spec: ContainerSpec,
        program: str,
        *,
        env: Mapping[str, str],
        labels: Mapping[str, str],
    ) -> str:
        """See `ContainerClient.run_program`; a container that does not start is removed."""
        with self._named(
            lambda error: program_refusal(error.status_code or 0, _said(error), spec.image)
        ):
            made = self._api.create_container(
                image=spec.image,
                entrypoint=["python3", "-c", program],
                command=[],
                environment=dict(env),
                labels=dict(labels),
                name=name,
                volumes=list(spec.volumes.values()),
                host_config=self._api.create_host_config(
                    binds=_binds(spec),
                    pids_limit=spec.pids,
                    security_opt=["no-new-privileges"],
                    log_config=_log_config(),
                ),
            )["Id"]
            self._start(made)
        return str(made)

    def has_image(self, image: str) -> bool:
        """See `ContainerClient.has_image`."""
        with self._named():
            try:
                self._api.inspect_image(image)
            except NotFound:
                return False
            return True

    def pull_image(self, image: str, report: Callable[[Mapping[str, Any]], object]) -> None:
        """See `ContainerClient.pull_image`; on a connection of its own, whose end ends the pull."""
        with self._named(lambda error: image_refusal(_said(error), image)):
            api = docker.APIClient(
                base_url=self._address.url, version=self._api.api_version, timeout=_PULL_SILENT_S
            )
            try:
                for message in api.pull(image, stream=True, decode=True):
                    _require_progress(message, image)
                    report(message)
            finally:
                api.close()

    def stop(self, container: str, grace_s: float) -> None:
        """See `ContainerClient.stop`."""
        with self._named():
            try:
                if grace_s >= 1:
                    self._api.stop(container, timeout=int(grace_s))
                self._api.remove_container(container, force=True)
            except NotFound:
                return
            except APIError as error:
                if not _BEING_REMOVED.search(_said(error)):
                    raise

    def follow(self, container: str, lines: int, write: Callable[[bytes], object]) -> None:
        """See `ContainerClient.follow`; on a connection of its own, which waits without a limit."""
        with self._named():
            api = docker.APIClient(
                base_url=self._address.url, version=self._api.api_version, timeout=self._timeout_s
            )
            try:
                for chunk in api.logs(container, stream=True, follow=True, tail=lines):
                    write(chunk)
            except NotFound:
                return
            finally:
                api.close()

    def host(self) -> ContainerHost:
        """See `ContainerSurvey.host`."""
        with self._named():
            version, info = self._api.version(), self._api.info()
        return ContainerHost(
            name=str((version.get("Platform") or {}).get("Name") or "container engine"),
            version=str(version.get("Version", "")),
            api=str(self._api.api_version),
            source=self._address.source,
            url=self._address.url,
            memory_mb=int(info.get("MemTotal") or 0) // 2**20,
        )

    def close(self) -> None:
        """See `ContainerClient.close`."""
        self._api.close()

    def _host_config(self, launch: Launch, port: int) -> Any:
        spec = launch.container
        assert spec is not None  # noqa: S101 - see `start`
        return self._api.create_host_config(
            port_bindings=None if self._network else {spec.port: ("127.0.0.1", port)},
            network_mode=self._network or None,
            binds=_binds(spec),
            shm_size=spec.shm_bytes,
            mem_limit=spec.memory_bytes,
            nano_cpus=None if spec.cpus is None else int(spec.cpus * 1e9),
            pids_limit=spec.pids,
            cap_add=list(spec.capabilities),
            security_opt=list(spec.security),
            device_requests=(
                [DeviceRequest(count=-1, capabilities=[["gpu"]])] if spec.has_gpus else None
            ),
            log_config=_log_config(),
        )

    def _start(self, made: str) -> None:
        try:
            self._api.start(made)
        except (DockerException, RequestException):
            self.stop(made, 0)
            raise

    @contextmanager
    def _named(self, name: Callable[[APIError], str] | None = None) -> Iterator[None]:
        """Turn the SDK's errors into one with a named reason."""
        try:
            yield
        except APIError as error:
            if name is None:
                raise ContainerError(
                    f"the container engine refused ({error.status_code})"
                ) from error
            is_outside = isinstance(error, ImageNotFound)  # somebody may be pulling it
            raise ContainerError(name(error), is_outside=is_outside) from error
        except (DockerException, RequestException) as error:
            raise ContainerError(
                f"the container engine does not answer any more ({self._address.source}); start it",
                is_unreachable=True,
            ) from error


def _said(error: APIError) -> str:
    return str(error.explanation or "")


def _addresses(data: Mapping[str, Any]) -> dict[str, str]:
    """Return a container's address in each of its networks, from what the engine says of it."""
    networks = (data.get("NetworkSettings") or {}).get("Networks") or {}
    return {name: str(one.get("IPAddress") or "") for name, one in networks.items()}


def _binds(spec: ContainerSpec) -> dict[str, dict[str, str]]:
    return {name: {"bind": place, "mode": "rw"} for name, place in spec.volumes.items()}


def _log_config() -> Any:
    return LogConfig(type=LogConfig.types.JSON, config={"max-size": _LOG_BYTES, "max-file": "2"})


def _require_progress(message: Mapping[str, Any], image: str) -> None:
    if "error" in message:
        raise ContainerError(image_refusal(str(message["error"]), image))
