"""What the environments of engines are made of, on every host that has them: the input of `make lock`.

python -m scripts.engine_requirements             names the engines whose packages an index has
python -m scripts.engine_requirements NAME        prints its requirements, with markers
python -m scripts.engine_requirements NAME pythons   prints the versions of Python that it takes
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from local_agent.domain import HostFacts
from local_agent.engines import ENGINES
from local_agent.environments import recipe_of
from local_agent.ports import Recipe

_HOSTS: Mapping[str, HostFacts] = {
    "darwin": HostFacts(platform="darwin", arch="arm64", memory_mb=0),
    "linux": HostFacts(platform="linux", arch="x86_64", memory_mb=0),
}


def recipes(name: str) -> dict[str, Recipe]:
    """Return what an engine's environment is made of, by the platform that it is for."""
    found = {platform: recipe_of(ENGINES[name], host) for platform, host in _HOSTS.items()}
    return {platform: one for platform, one in found.items() if isinstance(one, Recipe)}


def lockable() -> list[str]:
    """Return the engines whose packages all come from an index."""
    return [
        name
        for name in ENGINES
        if recipes(name)
        and not any(
            one.places or any("@" in word for word in one.requirements)
            for one in recipes(name).values()
        )
    ]


def requirements(name: str) -> list[str]:
    """Return the requirements; what is not the same everywhere has the platform that it is for."""
    by_platform = recipes(name)
    everywhere = set.intersection(*(set(one.requirements) for one in by_platform.values()))
    lines = sorted(everywhere) if len(by_platform) == len(_HOSTS) else []
    for platform, one in by_platform.items():
        own = [word for word in one.requirements if word not in lines]
        lines += [f"{word} ; sys_platform == '{platform}'" for word in own]
    return lines


def main(arguments: list[str]) -> None:
    """Print what was asked for."""
    if not arguments:
        sys.stdout.write("".join(f"{name}\n" for name in lockable()))
        return
    name, *what = arguments
    lines = requirements(name)
    if what == ["pythons"]:
        lines = sorted(
            next(iter(recipes(name).values())).pythons, key=lambda version: int(version[2:])
        )
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main(sys.argv[1:])
