"""CPU time, memory and counters from /proc."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from vtep.errors import VtepError
from vtep.testing.lab import Host

_TICKS = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _STIME = 1, 11, 12
"""Fields of /proc/PID/stat, counted from the state, which follows the name in parentheses."""

_IDLE = frozenset((3, 4, 7, 8, 9))
"""Columns of /proc/stat that are not CPU time in use: idle, iowait, steal, and the two of guests,
which user and nice include."""


def wait_until(condition: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """Poll a condition until it holds. Raises: VtepError after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise VtepError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)


def with_descendants(pids: Iterable[int]) -> list[int]:
    """Return processes and all of their running descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            stat = _stat(int(folder.name))
            if stat:
                parents[int(folder.name)] = int(stat[_PPID])
    family = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sorted(family)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system time of processes and all of their threads."""
    stats = [stat for pid in pids if (stat := _stat(pid))]
    return sum(int(stat[_UTIME]) + int(stat[_STIME]) for stat in stats) / _TICKS


def resident_memory(pid: int) -> tuple[float, float]:
    """Return the resident memory of a process in MiB: now, and at its peak."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) / 1024
    if not found:
        raise VtepError(f"process {pid} has ended")
    return found["VmRSS"], found["VmHWM"]


def machine_cpu_seconds(cpus: Iterable[int]) -> float:
    """Return the busy time of CPUs, including that of the kernel."""
    wanted = {f"cpu{cpu}" for cpu in cpus}
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *columns = line.split()
        if name in wanted:
            total += sum(int(ticks) for at, ticks in enumerate(columns) if at not in _IDLE)
    return total / _TICKS


def network_file(host: Host, name: str) -> str:
    """Return the contents of a file of /proc/net on a host."""
    return (host.namespace.parents[1] / "net" / name).read_text()


def device_counters(host: Host, device: str) -> tuple[int, int]:
    """Return octets and packets that a device has sent; a superframe is one packet."""
    for line in network_file(host, "dev").splitlines():
        name, _, columns = line.partition(":")
        if name.strip() == device:
            numbers = columns.split()
            return int(numbers[8]), int(numbers[9])
    raise VtepError(f"{host.name} has no device {device}")


def listens(host: Host, port: int) -> bool:
    """Return whether a program on a host listens on a TCP port."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in network_file(host, name).split("\n")
    ]
    return any(
        len(line) > 3 and line[3] == "0A" and line[1].endswith(f":{port:04X}") for line in lines
    )


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()
