"""Facts of this host from /proc and /dev: holders of UDP ports, checksum errors, restrictions."""

import os
from contextlib import suppress
from pathlib import Path

from vtep.io.udp_statistics import UdpErrors

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
