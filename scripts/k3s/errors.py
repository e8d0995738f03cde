"""Why a command could not do its work; each message is complete and names the next step."""

from __future__ import annotations


class ClusterError(Exception):
    """The command can't go on."""


class ToolMissing(ClusterError):
    """A program that is needed is not on the PATH."""


class ToolFailed(ClusterError):
    """A program that was run said no."""


class NotOurs(ClusterError):
    """Something is in the way that this program did not make, so it leaves it alone."""


class Unreachable(ClusterError):
    """The cluster does not answer."""


class ConsentNeeded(ClusterError):
    """What would be done needs a yes, and nobody gave one."""


class NotReady(ClusterError):
    """Everything was started, but it does not answer."""
