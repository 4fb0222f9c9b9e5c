"""UdpErrors: parsing the counters of the kernel."""

import socket
from pathlib import Path

import pytest

from vtep.io.udp_statistics import UdpErrors

SNMP = """\
Tcp: RtoAlgorithm InCsumErrors
Tcp: 1 99
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors MemErrors
Udp: 1 2 3 4 50 6 7 800
UdpLite: InDatagrams RcvbufErrors InCsumErrors
UdpLite: 1 2 3
"""
SNMP6 = """\
Udp6RcvbufErrors                	50
UdpLite6RcvbufErrors            	9
Udp6InCsumErrors                	7
Udp6MemErrors                   	800
"""


def test_overflow_includes_memory_errors() -> None:
    assert UdpErrors.parse_v4(SNMP) == UdpErrors.parse_v6(SNMP6) == UdpErrors(7, 850)


def test_an_older_kernel_has_fewer_counters() -> None:
    older = SNMP.replace(" MemErrors", "").replace(" 800", "")
    assert UdpErrors.parse_v4(older) == UdpErrors(7, 50)
    assert UdpErrors.parse_v6("Udp6RcvbufErrors 50\n") == UdpErrors(0, 50)
    assert UdpErrors.parse_v4("") == UdpErrors.parse_v6("") == UdpErrors(0, 0)


@pytest.mark.parametrize(("version", "family"), [(4, socket.AF_INET), (6, socket.AF_INET6)])
def test_the_kernel_counts_datagrams_to_a_full_buffer(
    version: int, family: socket.AddressFamily
) -> None:
    if not Path("/proc/thread-self/net/snmp6").exists():
        pytest.skip("needs IPv6")
    host = {4: "127.0.0.1", 6: "::1"}[version]
    with (
        socket.socket(family, socket.SOCK_DGRAM) as receiver,
        socket.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        receiver.bind((host, 0))
        sender.connect(receiver.getsockname())
        before = UdpErrors.read(version)
        for _ in range(100):
            sender.send(bytes(1000))
        after = UdpErrors.read(version)
        taken = 0
        receiver.setblocking(False)
        try:
            while receiver.recv(1000):
                taken += 1
        except BlockingIOError:
            pass
    assert after.overflow - before.overflow >= 100 - taken > 0
    assert after.checksum == before.checksum
