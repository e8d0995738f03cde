"""What is installed, to the version, and the names that tell what is ours.

The digest of k3s's installer is the one that upstream keeps in `install.sh.sha256sum` of that release.
The installer checks the k3s binary against the release's own checksums.
"""

from __future__ import annotations

from dataclasses import dataclass

OWNER_LABEL = "io.intelligent-inference-router/made-by"
"""On namespaces, secrets and nodes; its value is the installation's id, or two people would take each other's."""
CONTAINER_LABEL = "io.intelligent-inference-router.k3s"
"""On the container of a k3d cluster: k3d takes no slash there and keeps `k3d.` for itself."""

K3S_VERSION = "v1.36.4+k3s1"
K3S_IMAGE = "docker.io/rancher/k3s:v1.36.4-k3s1"
DEVICE_PLUGIN_IMAGE = "nvcr.io/nvidia/k8s-device-plugin:v0.19.3"

RELEASE = "llm-d"
SERVICE = "llm-d"
PORT_NAME = "http"
NODE_PORT = 30800
SECRET = "llm-d-hf-token"  # noqa: S105 - the name of a secret


@dataclass(frozen=True, slots=True)
class Installer:
    """A script, and the digest without which it is not run."""

    url: str
    sha256: str


INSTALLER = Installer(
    url="https://raw.githubusercontent.com/k3s-io/k3s/v1.36.4%2Bk3s1/install.sh",
    sha256="46177d4c99440b4c0311b67233823a8e8a2fc09693f6c89af1a7161e152fbfad",
)
