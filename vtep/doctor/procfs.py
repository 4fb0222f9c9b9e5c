"""Facts of this host from /proc and /dev: holders of UDP ports, errors, TCP, restrictions."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from vtep.doctor.evpn_facts import Md5Counters, TcpState
from vtep.io.udp_statistics import UdpErrors
from vtep.wire.address import Address

_TCP_ESTABLISHED = "01"
"""TCP_ESTABLISHED of the kernel's include/net/tcp_states.h, as the tables print it."""

_NET = Path("/proc/thread-self/net")
"""Not /proc/net: threads may be in different network namespaces."""


def process_with_port(port: int) -> tuple[str, int]:
    """Return name and PID of the process that has a UDP port; "" and 0 if none is visible."""
    inodes = set()
    for table in ("udp", "udp6"):
        with suppress(OSError):
            for line in (_NET / table).read_text().splitlines()[1:]:
                columns = line.split()
                if int(columns[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    if not inodes:
        return "", 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                return (process / "comm").read_text().strip(), int(process.name)
    return "", 0


def is_pyvtep(pid: int) -> bool:
    """Return True if a process runs pyvtep, as a script or as a module."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return any(Path(os.fsdecode(word)).name in ("pyvtep", "vtep") for word in words[:4])
    return False


def checksum_errors() -> int:
    """Return how many UDP datagrams this network namespace has dropped for their checksum."""
    total = 0
    for version in (4, 6):
        with suppress(OSError, ValueError):  # There may be no /proc, or no IPv6.
            total += UdpErrors.read(version).checksum
    return total


def md5_counters() -> Md5Counters | None:
    """Return how many TCP segments were dropped here for their MD5 signature; None if unknown."""
    with suppress(OSError):
        return parse_md5_counters((_NET / "netstat").read_text())
    return None


def parse_md5_counters(text: str) -> Md5Counters | None:
    """Parse the text of /proc/net/netstat: a line of names before a line of values."""
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("TcpExt:")]
    if len(lines) != 2:
        return None
    values = dict(zip(*lines, strict=False))
    names = ("TCPMD5NotFound", "TCPMD5Unexpected", "TCPMD5Failure")
    return Md5Counters(*(int(values.get(name, 0)) for name in names))


def tcp_state(remote: Address, port: int) -> TcpState | None:
    """Return the established TCP connection with a port, at either end, of a remote address."""
    with suppress(OSError):
        table = "tcp" if remote.version == 4 else "tcp6"
        return parse_tcp_state((_NET / table).read_text(), remote, port)
    return None


def parse_tcp_state(text: str, remote: Address, port: int) -> TcpState | None:
    """Find a connection in the text of /proc/net/tcp or tcp6 (`get_tcp4_sock` of the kernel)."""
    # Addresses are words of 32 bits as they are in memory.
    packed = remote.packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    address = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    for line in text.splitlines()[1:]:
        # sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt ...
        columns = line.split()
        if len(columns) < 7 or columns[3] != _TCP_ESTABLISHED:
            continue
        host, _, remote_port = columns[2].partition(":")
        local_port = columns[1].rpartition(":")[2]
        if host == address and port in (int(remote_port, 16), int(local_port, 16)):
            return TcpState(int(columns[4].partition(":")[0], 16), int(columns[6], 16))
    return None


def tun_problem() -> str | None:
    """Return why this user cannot open /dev/net/tun; None if it can."""
    try:
        # An open descriptor is no device until it is attached to one: nothing is created.
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return error.strerror
    return None


def restricts_user_namespaces() -> bool:
    """Return whether AppArmor takes the capabilities of users in their own user namespaces."""
    with suppress(OSError):
        name = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
        return Path(name).read_text().strip() == "1"
    return False
