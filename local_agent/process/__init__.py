"""Engines as operating system processes: start, watch, end, and find again after a crash."""

from local_agent.process.launcher import LocalProcess, LocalProcessLauncher, free_port
from local_agent.process.log import cause_of

__all__ = ["LocalProcess", "LocalProcessLauncher", "cause_of", "free_port"]
