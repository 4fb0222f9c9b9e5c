"""The TAP device: a thin layer on python-pytun.

Each frame that is read or written has a virtio-net header before it (IFF_VNET_HDR), so that a
frame with a partial checksum, or a superframe, passes as it is.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import pytun

from vtep import descriptors
from vtep.errors import VtepError
from vtep.host.devices import device_index, need_device_index
from vtep.io.namespace import closing_fd, is_here
from vtep.wire import virtio

if TYPE_CHECKING:
    from vtep.io.interfaces import ReadFrame, TapDevice, WriteFrame

# From include/uapi/linux/if_tun.h and sockios.h. pytun has no names for them.
_TUNSETPERSIST = 0x400454CB
TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNGETIFF = 0x800454D2
_TUNATTACHFILTER = 0x401054D5
_TUNDETACHFILTER = 0x401054D6
_TUNGETDEVNETNS = 0x54E3
SIOCGIFHWADDR: Final = 0x8927
_IFF_PERSIST = 0x0800
IFREQ_LEN: Final = 40
"""Octets of a struct ifreq."""

_PROC_TX_DROPPED = 11
"""Column of /proc/net/dev: 8 columns of receive counters, then bytes, packets, errs and this."""

OFFLOAD_TCP: Final = 0x01 | 0x02 | 0x04 | 0x08
"""TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN."""

_OFFLOAD_UDP = 0x20 | 0x40
"""TUN_F_USO4, TUN_F_USO6 (Linux 6.2)."""

_ACCEPT_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF_FFFF)
"""A filter of one instruction: return the whole frame (BPF_RET)."""

_DEVICE = "/dev/net/tun"
TAP_FLAGS: Final = pytun.IFF_TAP | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR


def _keep_neighbours(tap: str, *, on: bool) -> None:
    """Keep the neighbor entries of a TAP while no process has it open, on Linux 5.16 and later.

    A persistent TAP then has no carrier, for which the kernel removes them by default. The first
    packets would wait for the next ARP request, which is sent once a second.
    """
    for family, name in (("ipv4", "arp_evict_nocarrier"), ("ipv6", "ndisc_evict_nocarrier")):
        # A container, or a unit with ProtectKernelTunables=, may not change it.
        with suppress(OSError):
            Path(f"/proc/sys/net/{family}/conf/{tap}/{name}").write_text(str(int(not on)))


class Tap:
    """A non-blocking TAP device, and the owner of its descriptor.

    A free TAP of this name that exists already is attached to, and stays when it is closed. That is
    how pyvtep runs without privileges (`ip tuntap add vx0 mode tap user alice`). Otherwise the
    device is created, and removed when it is closed unless it was made persistent.

    `tso` and `uso` request superframes of TCP and UDP. The attributes say what the kernel granted.
    `inherited` is the descriptor of a TAP that is open already: it is owned from now on. If it is
    in another network namespace, `index_there` returns the index of a device there by its name.
    Raises VtepError, with what to do, if the kernel refuses the device.
    """

    _is_closed = False

    def __init__(
        self,
        name: str,
        *,
        tso: bool,
        uso: bool,
        inherited: int | None = None,
        index_there: Callable[[str], int | None] | None = None,
    ) -> None:
        self.fd: Final[int] = _open(name) if inherited is None else inherited
        self.read: ReadFrame = partial(os.readv, self.fd)
        self.write: WriteFrame = partial(os.writev, self.fd)
        try:
            self.index: Final = (
                need_device_index(name) if inherited is None else self._find_index(index_there)
            )
            """The index in the network namespace in which it was opened; 0 if an inherited one is
            not in this namespace now."""
            os.set_inheritable(self.fd, False)
            os.set_blocking(self.fd, False)
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", virtio.HEADER_LEN))
            self._is_persistent = False
            self.request_offloads(tso=tso, uso=uso)
        except OSError as error:
            self.close()
            raise _explain(name, error) from error

    def _find_index(self, index_there: Callable[[str], int | None] | None) -> int:
        """Return the index of the device by its present name; 0 if it is in another namespace."""
        name = self.name
        if index_there is not None:
            return index_there(name) or 0
        return (device_index(name) or 0) if self._is_here() else 0

    def request_offloads(self, *, tso: bool, uso: bool) -> None:
        """Request superframes of TCP and UDP; `tso` and `uso` say what the kernel granted."""
        # The kernel segments and completes checksums itself, except for what these flags leave to
        # the reader. An earlier call may have set some, so the last term clears them; it is False.
        self.uso = tso and uso and self._set_offloads(OFFLOAD_TCP | _OFFLOAD_UDP)
        self.tso = (
            self.uso or (tso and self._set_offloads(OFFLOAD_TCP)) or not self._set_offloads(0)
        )

    def _set_offloads(self, offloads: int) -> bool:
        """Set the TUN_F_* flags. Returns: False if the kernel does not know all of them."""
        try:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, offloads)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    @property
    def name(self) -> str:
        """The present name: devices can be renamed. Raises: OSError if the device is gone."""
        return self._query(_TUNGETIFF)[:16].rstrip(b"\0").decode(errors="replace")

    @property
    def removed_on_close(self) -> bool:
        """True if the kernel removes the device from this network namespace when it is closed."""
        try:
            (flags,) = struct.unpack_from("H", self._query(_TUNGETIFF), 16)
            return not flags & _IFF_PERSIST and self._is_here()
        except OSError:  # It is gone already.
            return False

    def _is_here(self) -> bool:
        """Return whether the device is in this network namespace. Raises: OSError if it is gone."""
        try:
            with closing_fd(namespace_of_tap(self.fd)) as namespace:
                return is_here(namespace)
        except PermissionError:
            # The kernel wants CAP_NET_ADMIN in the namespace of the TAP. Another device of the same
            # name has another MAC address.
            return _mac_here(self.name) == self.mac

    @property
    def mac(self) -> bytes:
        """The present MAC address, 6 octets. Raises: OSError if the device is gone."""
        return self._query(SIOCGIFHWADDR)[18:24]

    def _query(self, request: int) -> bytes:
        """Return the struct ifreq that an ioctl without input fills in. Raises: OSError."""
        return fcntl.ioctl(self.fd, request, bytes(IFREQ_LEN))

    def set_persistent(self, *, on: bool) -> None:
        """Make the device outlive this process, or undo that.

        A device that another process made persistent stays so.
        """
        if on != self._is_persistent:
            fcntl.ioctl(self.fd, _TUNSETPERSIST, int(on))
            self._is_persistent = on
            if self._is_here():  # Else a device of the same name here would be meant.
                _keep_neighbours(self.name, on=on)

    def close(self) -> None:
        """Close the device. If the kernel removes it, that takes 20 ms."""
        if not self._is_closed:  # The number may be that of another descriptor by then.
            self._is_closed = True
            os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def namespace_of_tap(fd: int) -> int:
    """Open the network namespace that a TAP is in now.

    Raises: OSError if the device is gone; PermissionError without CAP_NET_ADMIN in the namespace.
    """
    namespace: int = fcntl.ioctl(fd, _TUNGETDEVNETNS)
    os.set_inheritable(namespace, False)
    return namespace


def _mac_here(name: str) -> bytes | None:
    """Return the MAC address of a device of this network namespace; None if there is none."""
    request = struct.pack(f"16s{IFREQ_LEN - 16}x", name.encode())
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, SIOCGIFHWADDR, request)[18:24]
    return None


def check_tap(fd: int) -> str | None:
    """Return why a descriptor is not one of a TAP that pyvtep can use; None if it is."""
    try:
        reply = fcntl.ioctl(fd, _TUNGETIFF, bytes(IFREQ_LEN))
    except OSError as error:
        if error.errno == errno.EBADF:
            return "is not open; the shell opens a file by, e.g., 3<>/dev/net/tun"
        return "is no TAP that is attached to a device (TUNSETIFF)"
    (flags,) = struct.unpack_from("H", reply, 16)
    if flags & TAP_FLAGS == TAP_FLAGS:
        # The reply has bit 0x1000, which is IFF_NO_PI, also as IFF_NOFILTER: no filter is attached
        # (tun_chr_ioctl() in the kernel's drivers/net/tun.c). With one, the bit has one meaning.
        with suppress(OSError), _accepting_filter(fd):
            (flags,) = struct.unpack_from("H", fcntl.ioctl(fd, _TUNGETIFF, bytes(IFREQ_LEN)), 16)
    if flags & TAP_FLAGS != TAP_FLAGS:
        return "is of another kind; open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    return None


@contextmanager
def _accepting_filter(fd: int) -> Iterator[None]:
    """Attach a filter to a TAP that has none, which accepts all frames, during the block."""
    program = ctypes.create_string_buffer(_ACCEPT_ALL, len(_ACCEPT_ALL))
    fprog = struct.pack("@HP", 1, ctypes.addressof(program))
    fcntl.ioctl(fd, _TUNATTACHFILTER, fprog)
    try:
        yield
    finally:
        fcntl.ioctl(fd, _TUNDETACHFILTER, fprog)


def tap_exists(fd: int) -> bool:
    """Return whether the device of a TAP's descriptor still exists."""
    try:
        fcntl.ioctl(fd, _TUNGETIFF, bytes(IFREQ_LEN))
    except OSError:  # EBADFD
        return False
    return True


def queue_drops(devices: int | None = None) -> Iterator[tuple[str, int]]:
    """Yield the name of each device, and how many frames it discarded since it exists.

    `devices` is the descriptor of /proc/net/dev of another network namespace.

    A TAP discards frames while the queue in front of its reader is full. The devices are read in
    portions, as the iterator advances. Raises: OSError.
    """
    # Not from sysfs, which may be mounted for another network namespace.
    with ExitStack() as opened:
        if devices is None:
            lines = opened.enter_context(Path("/proc/thread-self/net/dev").open())
        else:
            lines = opened.enter_context(open(devices, closefd=False))
            lines.seek(0)
        for line in lines:
            name, colon, numbers = line.partition(":")
            if colon:
                yield name.strip(), int(numbers.split()[_PROC_TX_DROPPED])


def _open(name: str) -> int:
    """Open a TAP device. Returns: its descriptor. Raises: VtepError."""
    try:
        device = pytun.TunTapDevice(name=name, flags=TAP_FLAGS)
    except OSError as error:
        raise _explain(name, error) from error
    # An own reference, since pytun closes the one that it has with its object.
    with closing(device):
        return os.dup(device.fileno())


def _explain(name: str, error: OSError) -> VtepError:
    """Return the error of a TAP that could not be opened, with what to do."""
    reasons = {
        errno.ENOENT: f"cannot open {_DEVICE}: no such file; load the kernel module (modprobe "
        f"tun), or pass the device to the container (docker run --device {_DEVICE})",
        errno.ENODEV: f"cannot open {_DEVICE}: the kernel has no TUN/TAP driver; modprobe tun",
        errno.EPERM: "cannot create a TAP device: no privilege; run as root or with CAP_NET_ADMIN, "
        f"or create it as root: ip tuntap add {name} mode tap user {os.geteuid()}",
        errno.EBUSY: f"--tap {name}: another process has this device; choose another name",
        errno.EINVAL: f"--tap {name}: a network device of this name exists and is not a free TAP; "
        "choose another name",
    }
    reasons[errno.EACCES] = (
        f"cannot open {_DEVICE}: permission denied; run as root, or allow all users to open it, as "
        f"most systems do (chmod 666 {_DEVICE}): to create a device still needs CAP_NET_ADMIN"
    )
    if error.errno == errno.EINVAL and name not in (taken for _, taken in socket.if_nameindex()):
        reasons[errno.EINVAL] = f"--tap {name}: the kernel refuses this name; choose another one"
    number = error.errno if error.errno is not None else 0
    reason = reasons.get(number, f"--tap {name}: cannot open it: {descriptors.reason(error)}")
    return VtepError(reason)


if TYPE_CHECKING:

    def _is_tap_device(tap: Tap) -> TapDevice:
        return tap
