"""Root without root's way around permissions: what a user meets, where the campaign runs as root."""

import ctypes
import os

_VERSION = 0x20080522  # of the structures of capset(2), _LINUX_CAPABILITY_VERSION_3
_OVERRIDES = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def without_override() -> None:
    """From now on permissions hold for this process, where it is root's. Raises `OSError`: the kernel refuses."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capget")
    for name in ("effective", "permitted"):
        setattr(sets[0], name, getattr(sets[0], name) & ~_OVERRIDES)
    if libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), "capset")
