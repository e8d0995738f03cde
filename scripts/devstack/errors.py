"""Why a start did not work; each message is complete and names the next step where there is one."""

from __future__ import annotations


class StartError(Exception):
    """The start can't go on."""


class PortTaken(StartError):
    """A port that was asked for is in use."""


class AlreadyRunning(StartError):
    """Another process of this program holds the lock."""


class StepFailed(StartError):
    """A step before the start did not work."""


class ServiceEnded(StartError):
    """A service gave up during its start; starting it again would only repeat that."""


class NotReady(StartError):
    """Both services run, but something is missing when the time is over."""
