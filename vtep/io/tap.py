"""The TAP device: a thin shell around python-pytun.

Every frame that is read or written has a virtio-net header before it (IFF_VNET_HDR), so that a
received frame with a partial checksum, or a superframe, can be handed on as what it is.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytun

from vtep import descriptors
from vtep.errors import VtepError
from vtep.host.devices import need_device_index
from vtep.wire import virtio

# From the kernel's include/uapi/linux/if_tun.h; pytun has no names for them.
_TUNSETPERSIST = 0x400454CB
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
_TUNGETIFF = 0x800454D2
_TUNGETDEVNETNS = 0x54E3
SIOCGIFHWADDR = 0x8927
_IFF_PERSIST = 0x0800
IFREQ_LEN = 40

_PROC_TX_DROPPED = 11
"""Column of /proc/net/dev: 8 of what was received, then bytes, packets, errs and this."""

# TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN; TUN_F_USO4, TUN_F_USO6 (Linux 6.2).
OFFLOAD_TCP = 0x01 | 0x02 | 0x04 | 0x08
_UDP = 0x20 | 0x40

_DEVICE = "/dev/net/tun"
TAP_FLAGS = pytun.IFF_TAP | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR


class Tap:
    """A TAP device, non-blocking, removed when closed unless it was made by somebody else, or is
    to persist.

    A device of this name that exists already, is a TAP and is free is taken over and outlives us:
    that is how pyvtep runs without privileges (`ip tuntap add vx0 mode tap user alice`).

    `tso` and `uso` say whether it is to be asked for superframes of TCP and UDP, and afterwards
    whether the kernel agreed.

    Raises VtepError, saying what to do, where the kernel refuses.
    """

    def __init__(self, name: str, *, tso: bool, uso: bool) -> None:
        self._device = _open(name)
        try:
            self.index = need_device_index(name)
            """Its index in the network namespace in which it was opened."""
        except OSError as error:
            self._device.close()
            raise _explain(name, error) from error
        self.fd: int = self._device.fileno()
        os.set_inheritable(self.fd, False)
        os.set_blocking(self.fd, False)
        fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", virtio.HEADER_LEN))
        self._persists = False
        self.ask(tso=tso, uso=uso)

    def ask(self, *, tso: bool, uso: bool) -> None:
        """Ask for superframes of TCP and UDP, as far as the kernel has them, or for none."""
        # What is not asked for, the kernel does before we read a frame.
        self.uso = tso and uso and self._ask_for(OFFLOAD_TCP | _UDP)
        self.tso = self.uso or (tso and self._ask_for(OFFLOAD_TCP)) or not self._ask_for(0)

    def _ask_for(self, offloads: int) -> bool:
        """Ask for frames with these things left to us, instead of those asked for before."""
        try:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, offloads)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    @property
    def name(self) -> str:
        """Its name now: devices can be renamed. Raises OSError if it is gone."""
        return self._ask(_TUNGETIFF)[:16].rstrip(b"\0").decode(errors="replace")

    @property
    def goes(self) -> bool:
        """Whether the device is in this network namespace, and gone once this is closed."""
        try:
            (flags,) = struct.unpack_from("H", self._ask(_TUNGETIFF), 16)
            namespace = fcntl.ioctl(self.fd, _TUNGETDEVNETNS)
        except OSError:  # It is gone already.
            return False
        try:
            here = Path("/proc/thread-self/ns/net").stat().st_ino
            return not flags & _IFF_PERSIST and os.fstat(namespace).st_ino == here
        finally:
            os.close(namespace)

    @property
    def mac(self) -> bytes:
        """Its MAC address now, 6 octets. Raises OSError if it is gone."""
        return self._ask(SIOCGIFHWADDR)[18:24]

    def _ask(self, request: int) -> bytes:
        """The kernel's struct ifreq for a request that needs nothing in it."""
        return fcntl.ioctl(self.fd, request, bytes(IFREQ_LEN))

    def persist(self, *, on: bool) -> None:
        """Have the device outlive us; or not, if it would because of us."""
        if on != self._persists:
            fcntl.ioctl(self.fd, _TUNSETPERSIST, int(on))
            self._persists = on

    def close(self) -> None:
        """Give the device back; one that we made is gone then, for which the kernel takes 20 ms."""
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def queue_drops() -> Iterator[tuple[str, int]]:
    """How many frames the kernel has discarded in front of each device's reader, with its name.

    For a TAP these are frames that we were too slow for, counted since it exists. Devices are asked
    about a few at a time, as they are wanted. Raises OSError.
    """
    # Not sysfs: what is mounted there may show the devices of another network namespace.
    with Path("/proc/thread-self/net/dev").open() as devices:
        for line in devices:
            name, colon, numbers = line.partition(":")
            if colon:
                yield name.strip(), int(numbers.split()[_PROC_TX_DROPPED])


def _open(name: str) -> pytun.TunTapDevice:
    try:
        return pytun.TunTapDevice(name=name, flags=TAP_FLAGS)
    except OSError as error:
        raise _explain(name, error) from error


def _explain(name: str, error: OSError) -> VtepError:
    reasons = {
        errno.ENOENT: f"there is no {_DEVICE}: load the kernel module (modprobe tun), or give the "
        f"container the device (docker run --device {_DEVICE})",
        errno.ENODEV: f"the kernel behind {_DEVICE} has no TUN/TAP driver: modprobe tun",
        errno.EPERM: "no privilege to make a TAP device: run as root or with CAP_NET_ADMIN, or let "
        f"root make it for you: ip tuntap add {name} mode tap user {os.geteuid()}",
        errno.EBUSY: f"--tap {name}: another process has this device; choose another name",
        errno.EINVAL: f"--tap {name}: a network device of this name exists and is not a free TAP; "
        "choose another name",
    }
    reasons[errno.EACCES] = (
        f"no access to {_DEVICE}: run as root, or let root give it to all, as most systems do "
        f"(chmod 666 {_DEVICE}): that makes nobody a device who has no privilege to"
    )
    if error.errno == errno.EINVAL and name not in (taken for _, taken in socket.if_nameindex()):
        reasons[errno.EINVAL] = f"--tap {name}: the kernel does not take this name"
    number = error.errno if error.errno is not None else 0
    reason = reasons.get(number, f"--tap {name}: cannot open it: {descriptors.reason(error)}")
    return VtepError(reason)
