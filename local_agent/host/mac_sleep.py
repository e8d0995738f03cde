"""Hears macOS announce sleep, and tells who has started it: a program of its own, see `MacSleep`.

It is run by its path, knows nothing of the agent, and needs the standard library only. macOS gives the word
to run loops, which keep a thread for themselves; and a mistake at the border to C ends this process, not the agent.

It prints `listening` once it is registered, `going NUMBER` before each sleep, and `woke`. A NUMBER that it
reads lets the Mac sleep; it ends with its input. Sources, all of Apple:

- https://developer.apple.com/documentation/iokit/1557114-ioregisterforsystempower: which messages come, and
  which have to be answered; sleep goes on after 30 s without an answer
- https://developer.apple.com/library/archive/qa/qa1340/_index.html: the calls, in their order
- `IOKit/IOMessage.h`, `IOKit/IOReturn.h`, `mach/error.h`: the numbers (`iokit_common_msg` is
  `err_system(0x38) | err_sub(0) | message`)
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

_COMMON = 0x38 << 26
CAN_SLEEP = _COMMON | 0x270
"""`kIOMessageCanSystemSleep`: it has been idle, and asks whether it may."""
WILL_SLEEP = _COMMON | 0x280
"""`kIOMessageSystemWillSleep`: it will, and waits for the answer."""
WILL_NOT_SLEEP = _COMMON | 0x290
"""`kIOMessageSystemWillNotSleep`: somebody refused when it asked; no answer is wanted."""
HAS_POWERED_ON = _COMMON | 0x300
"""`kIOMessageSystemHasPoweredOn`: it is awake; no answer is wanted."""

_FRAMEWORKS = "/System/Library/Frameworks/{name}.framework/{name}"
Hear = Callable[[int, int], None]
# IOServiceInterestCallback: refcon, service, message type, message argument
_Callback = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p
)


class RootDomain(Protocol):
    """Who announces sleep."""

    def allow(self, number: int) -> None:
        """Let it sleep, as far as we are asked; any thread may."""
        ...


class SystemPower:
    """macOS's root power domain. `register` and `run` belong to one thread, its run loop's."""

    def __init__(self, iokit: Any, foundation: Any, mode: Any) -> None:
        """Take the two libraries, and `kCFRunLoopDefaultMode`; set what their functions take and give."""
        self._iokit, self._foundation, self._mode = iokit, foundation, mode
        self._root = 0
        self._callback: Any = None
        pointer, port = ctypes.c_void_p, ctypes.c_uint32  # every io_object_t is a mach_port_t
        for library, name, result, arguments in (
            (iokit, "IORegisterForSystemPower", port, (pointer,) * 4),
            (iokit, "IONotificationPortGetRunLoopSource", pointer, (pointer,)),
            (iokit, "IOAllowPowerChange", ctypes.c_int, (port, ctypes.c_ssize_t)),
            (foundation, "CFRunLoopGetCurrent", pointer, ()),
            (foundation, "CFRunLoopAddSource", None, (pointer,) * 3),
            (foundation, "CFRunLoopRun", None, ()),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, list(arguments)

    @classmethod
    def of_this_mac(cls) -> SystemPower:
        """Return it by the libraries of this system.

        Raises:
            OSError: they are not there.
        """
        iokit = ctypes.CDLL(_FRAMEWORKS.format(name="IOKit"))
        foundation = ctypes.CDLL(_FRAMEWORKS.format(name="CoreFoundation"))
        mode = ctypes.c_void_p.in_dll(foundation, "kCFRunLoopDefaultMode")
        return cls(iokit, foundation, mode)

    def register(self, hear: Hear) -> bool:
        """Have `hear` called with each message and its notification's number; tell whether that works."""

        def callback(_refcon: object, _service: int, message: int, argument: int | None) -> None:
            hear(message, argument or 0)

        self._callback = _Callback(callback)  # C holds its address only: it has to be kept
        port, notifier = ctypes.c_void_p(), ctypes.c_uint32()
        self._root = self._iokit.IORegisterForSystemPower(
            None,
            ctypes.byref(port),
            ctypes.cast(self._callback, ctypes.c_void_p),
            ctypes.byref(notifier),
        )
        if not self._root:
            return False
        source = self._iokit.IONotificationPortGetRunLoopSource(port)
        loop = self._foundation.CFRunLoopGetCurrent()
        self._foundation.CFRunLoopAddSource(loop, source, self._mode)
        return True

    def run(self) -> None:
        """Serve the run loop; as long as it has its source it does not return."""
        self._foundation.CFRunLoopRun()

    def allow(self, number: int) -> None:
        """See `RootDomain.allow`."""
        self._iokit.IOAllowPowerChange(self._root, number)


def hearing(domain: RootDomain, say: Callable[[str], None]) -> Hear:
    """Return what answers macOS's messages: whoever reads what is said answers for the sleep itself."""

    def hear(message: int, number: int) -> None:
        if message == CAN_SLEEP:
            domain.allow(number)  # what must not be broken off holds an assertion: see `Caffeinate`
        elif message in {WILL_NOT_SLEEP, HAS_POWERED_ON}:
            say("woke")
        elif message == WILL_SLEEP:
            try:
                say(f"going {number}")
            except (OSError, ValueError):
                domain.allow(number)  # nobody reads it any more

    return hear


def obey(domain: RootDomain, lines: Iterable[str]) -> None:
    """Allow the sleeps whose numbers are read, until there is nothing more to read."""
    for line in lines:
        if line.strip().isdecimal():
            domain.allow(int(line))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Listen until the input ends; 1 if macOS does not let us."""
    try:
        power = SystemPower.of_this_mac()
    except (OSError, ValueError, AttributeError) as error:
        _say(f"unheard {type(error).__name__}")
        return 1

    def end_with_input() -> None:
        obey(power, sys.stdin)
        os._exit(0)  # the run loop of the first thread ends for nobody

    if not power.register(hearing(power, _say)):
        _say("unheard refused")
        return 1
    threading.Thread(target=end_with_input, daemon=True).start()
    _say("listening")
    power.run()
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
