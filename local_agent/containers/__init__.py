"""Engines in containers: find the container engine, start, watch, end, and take over after a crash."""

from local_agent.containers.either import EitherLauncher
from local_agent.containers.launcher import ContainerLauncher

__all__ = ["ContainerLauncher", "EitherLauncher"]
