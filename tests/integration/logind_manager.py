"""The part of `org.freedesktop.login1.Manager` that a test plays; the annotations are D-Bus signatures."""

# no `from __future__ import annotations`: dbus-fast reads the signatures
from collections.abc import Callable
from typing import Any

from dbus_fast import PropertyAccess
from dbus_fast.service import ServiceInterface, dbus_property, method, signal

Inhibit = Callable[[str, str, str], int]


class Manager(ServiceInterface):  # type: ignore[misc] # untyped where it is not installed
    """Logind's manager: inhibitors, the word before and after sleep, and how long it waits."""

    def __init__(self, most_us: int, inhibit: Inhibit) -> None:
        super().__init__("org.freedesktop.login1.Manager")
        self._most_us = most_us
        self._inhibit = inhibit

    @method()  # type: ignore[untyped-decorator]
    def Inhibit(self, what: "s", who: "s", why: "s", mode: "s") -> "h":  # type: ignore[name-defined] # noqa: F821, N802
        return self._inhibit(what, who, mode)

    @signal()  # type: ignore[untyped-decorator]
    def PrepareForSleep(self, is_going: Any) -> "b":  # type: ignore[name-defined] # noqa: F821, N802
        return is_going

    @dbus_property(access=PropertyAccess.READ)  # type: ignore[untyped-decorator]
    def InhibitDelayMaxUSec(self) -> "t":  # type: ignore[name-defined] # noqa: F821, N802
        return self._most_us
