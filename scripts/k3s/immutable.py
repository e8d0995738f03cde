"""What an older chart made otherwise and Kubernetes does not change in place: a Deployment's selector.

Of the API server, whichever way helm asks it: `Deployment.apps "llm-d-epp" is invalid: spec.selector:
Invalid value: …: field is immutable`. A Deployment holds no data: helm makes it anew where it is gone.
"""

from __future__ import annotations

import re
import shlex

from scripts.devstack.text import say
from scripts.k3s.engine_log import Finding
from scripts.k3s.release import DOCTOR
from scripts.k3s.tools import Tools

_SAID = re.compile(
    r'Deployment\.apps "(?P<name>[\w.-]+)" is invalid: (?:(?!is invalid).)*?field is immutable',
    re.DOTALL,
)


def finding(tools: Tools, namespace: str, said: str) -> Finding | None:
    """Return what the doctor says of it; None if it is something else."""
    names = _deployments(said)
    if not names:
        return None
    delete = shlex.join(_delete(tools, namespace, names))
    return Finding(_what(names), f"{delete} && make k3s-up, which makes it anew; models are kept")


def make_way(tools: Tools, namespace: str, said: str) -> bool:
    """Delete such Deployments with consent; False: it is something else, or the answer is no."""
    names = _deployments(said)
    if not names:
        return False
    say(_what(names))
    if not tools.may(f"Make {' and '.join(names)} anew? Pods start anew; models are kept."):
        return False
    tools.act("deleting what is made anew", _delete(tools, namespace, names), hint=DOCTOR)
    return True


def _deployments(said: str) -> list[str]:
    return list(dict.fromkeys(found["name"] for found in _SAID.finditer(said)))


def _what(names: list[str]) -> str:
    return (
        f"An older chart made {' and '.join(names)} with another selector, which Kubernetes does not change "
        "in place"
    )


def _delete(tools: Tools, namespace: str, names: list[str]) -> list[str]:
    where = ("--namespace", namespace, "--cascade=foreground", "--timeout=180s")
    return tools.kubectl("delete", "deployment", *names, *where)
