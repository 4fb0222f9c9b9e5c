"""What the kernel counts of UDP in a network namespace, of all sockets together."""

import re
from pathlib import Path
from typing import Self

from attrs import frozen

# Not /proc/net, which is that of the process: a thread may be in another namespace.
_FOLDER = Path("/proc/thread-self/net")


@frozen
class UdpErrors:
    """Datagrams that were discarded since the namespace exists.

    `checksum` of them had a wrong checksum; the kernel may find that before it knows the socket.
    `overflow` found a socket's receive buffer full, or no memory.
    """

    checksum: int
    overflow: int

    @classmethod
    def read(cls, version: int) -> Self:
        """Return the counts of an IP version. Raises OSError."""
        if version == 6:
            return cls.parse_v6((_FOLDER / "snmp6").read_text())
        return cls.parse_v4((_FOLDER / "snmp").read_text())

    @classmethod
    def parse_v4(cls, text: str) -> Self:
        """Return the counts in the text of /proc/net/snmp: a line of names before one of values."""
        lines = [line.split()[1:] for line in text.splitlines() if line.startswith("Udp:")]
        return cls._of(dict(zip(*lines, strict=False)) if len(lines) == 2 else {})

    @classmethod
    def parse_v6(cls, text: str) -> Self:
        """Return the counts in the text of /proc/net/snmp6: lines of a name and a value."""
        return cls._of(dict(re.findall(r"^Udp6(\w+)\s+(\d+)$", text, re.MULTILINE)))

    @classmethod
    def _of(cls, values: dict[str, str]) -> Self:
        # MemErrors is there since Linux 5.13.
        full = (int(values.get(name, 0)) for name in ("RcvbufErrors", "MemErrors"))
        return cls(int(values.get("InCsumErrors", 0)), sum(full))
