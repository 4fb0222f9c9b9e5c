"""Counters of the kernel for all UDP sockets of a network namespace together."""

import re
from pathlib import Path
from typing import Self

from attrs import frozen

# Not /proc/net, which is that of the process: a thread may be in another network namespace.
_FOLDER = Path("/proc/thread-self/net")


@frozen
class UdpErrors:
    """Datagrams that the kernel has discarded since the namespace exists."""

    checksum: int
    """Those with a wrong checksum. The kernel may detect that before it looks up the socket."""
    overflow: int
    """Those for which the receive buffer of a socket was full, or memory was short."""

    @classmethod
    def read(cls, version: int) -> Self:
        """Read the counters of an IP version. Raises: OSError."""
        if version == 6:
            return cls.parse_v6((_FOLDER / "snmp6").read_text())
        return cls.parse_v4((_FOLDER / "snmp").read_text())

    @classmethod
    def parse_v4(cls, text: str) -> Self:
        """Parse the text of /proc/net/snmp: a line of names before a line of values."""
        lines = [line.split()[1:] for line in text.splitlines() if line.startswith("Udp:")]
        return cls._of(dict(zip(*lines, strict=False)) if len(lines) == 2 else {})

    @classmethod
    def parse_v6(cls, text: str) -> Self:
        """Parse the text of /proc/net/snmp6: lines of a name and a value."""
        return cls._of(dict(re.findall(r"^Udp6(\w+)\s+(\d+)$", text, re.MULTILINE)))

    @classmethod
    def _of(cls, values: dict[str, str]) -> Self:
        # MemErrors exists since Linux 5.13.
        full = (int(values.get(name, 0)) for name in ("RcvbufErrors", "MemErrors"))
        return cls(int(values.get("InCsumErrors", 0)), sum(full))
