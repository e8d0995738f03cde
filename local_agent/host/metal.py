"""What Metal lets programs have of a Mac's memory, as the device says it: never a share that we assume.

The limit is `recommendedMaxWorkingSetSize` of the default device
(https://developer.apple.com/documentation/metal/mtldevice/recommendedmaxworkingsetsize). It differs from
Mac to Mac (11.84 GiB of 16 on an M3, 107.52 of 128 on an M5 Max, 14.3 GB of 18), and follows
`iogpu.wired_limit_mb` where somebody has set that, which is what is asked where the device can't be.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from local_agent.host.macos import parse_sysctl, sysctl_int
from local_agent.host.tools import Ask, ask, sysctl

WIRED_LIMIT = "iogpu.wired_limit_mb"
_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Metal:
    """What Metal tells; None: it does not.

    `limit_mb` is its limit in MiB, `has_device` whether there is a device at all
    (`MTLCreateSystemDefaultDevice`).
    """

    limit_mb: int | None
    has_device: bool | None


def ask_metal(ask: Ask = ask) -> Metal:
    """Ask Metal. Blocks for a moment.

    The device is asked in a process of its own: what goes wrong in Metal must not end the agent.
    """
    said = ask((sys.executable, "-I", "-c", _ASK))
    return Metal(
        limit_mb=chosen_limit_mb(said or "", sysctl(WIRED_LIMIT)),
        has_device=None if said is None else bool(said.strip()),
    )


def chosen_limit_mb(device: str, wired: str) -> int | None:
    """Return the limit in MiB: the device's, else the one that somebody set; None if there is neither.

    Args:
        device: bytes, as the program that asks the device prints them.
        wired: what `sysctl iogpu.wired_limit_mb` prints. Its 0 means that the system decides, and tells
            nothing.
    """
    text = device.strip()
    if text.isdecimal() and int(text) >= _MIB:
        return int(text) // _MIB
    limit = sysctl_int(parse_sysctl(wired), WIRED_LIMIT)
    return limit if limit is not None and limit > 0 else None


# Objective-C's runtime by ctypes: a few messages, and no package that only a Mac has. Apple's arm64 wants
# `objc_msgSend` called with the types of the method, so the prototype is set. Without CoreGraphics there is no
# default device, says https://developer.apple.com/documentation/metal/mtlcreatesystemdefaultdevice(); where there is
# none at all, MLX still finds the first one of the list.
_ASK = """
import ctypes
ctypes.CDLL("/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics")
metal = ctypes.CDLL("/System/Library/Frameworks/Metal.framework/Metal")
objc = ctypes.CDLL("/usr/lib/libobjc.dylib")
metal.MTLCreateSystemDefaultDevice.restype = ctypes.c_void_p
metal.MTLCopyAllDevices.restype = ctypes.c_void_p
objc.sel_registerName.restype = ctypes.c_void_p
objc.sel_registerName.argtypes = [ctypes.c_char_p]
objc.objc_msgSend.restype = ctypes.c_uint64
objc.objc_msgSend.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
first, limit = map(objc.sel_registerName, (b"firstObject", b"recommendedMaxWorkingSetSize"))
device = metal.MTLCreateSystemDefaultDevice() or objc.objc_msgSend(metal.MTLCopyAllDevices(), first)
if device:
    print(objc.objc_msgSend(device, limit))
"""
