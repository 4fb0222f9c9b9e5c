"""The error queue of a UDP socket: what the kernel reports about datagrams that were sent."""

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from vtep.counters import Drop
from vtep.io import socket_constants as const
from vtep.io.error_queue import (
    QueuedError,
    ReturnedDatagram,
    drop_reason,
    read_errors,
    returned_datagrams,
)

HOST = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
DEADLINE_MS = 10_000


@pytest.fixture(params=HOST)
def sender(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Open a socket connected to a local port without a listener."""
    family = request.param
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as unused:
        unused.bind((HOST[family], 0))
        address = unused.getsockname()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, const.IPV6_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, const.IP_RECVERR, 1)
        sock.setblocking(False)
        sock.connect(address)
        yield sock


def send_and_wait(sock: socket.socket) -> None:
    """Send a datagram, and wait until an error about it is queued."""
    sock.send(b"datagram")
    poll = select.poll()
    poll.register(sock, 0)
    assert poll.poll(DEADLINE_MS)


def test_an_icmp_error_is_parsed(sender: socket.socket) -> None:
    send_and_wait(sender)
    v6 = sender.family == socket.AF_INET6
    host = HOST[socket.AddressFamily(sender.family)]
    (error,) = read_errors(sender)
    assert error == QueuedError(
        destination=host,
        errno=errno.ECONNREFUSED,
        origin=const.SO_EE_ORIGIN_ICMP6 if v6 else const.SO_EE_ORIGIN_ICMP,
        # Port unreachable: RFC 4443, section 3.1, and RFC 792.
        type=1 if v6 else 3,
        code=4 if v6 else 3,
        info=0,
        offender=host,
    )
    assert error.is_icmp
    assert read_errors(sender) == []


def test_a_returned_datagram_has_its_destination_and_a_drop_reason(sender: socket.socket) -> None:
    send_and_wait(sender)
    host = HOST[socket.AddressFamily(sender.family)]
    assert returned_datagrams(sender) == [ReturnedDatagram(host, Drop.UNDERLAY_REFUSED)]
    assert returned_datagrams(sender) == []


def test_an_error_of_this_host_is_no_returned_datagram(sender: socket.socket) -> None:
    """The kernel queues a send that is too large for the device, and the send itself fails."""
    if sender.family == socket.AF_INET6:
        sender.setsockopt(socket.IPPROTO_IPV6, const.IPV6_MTU_DISCOVER, const.PMTUDISC_DO)
    else:
        sender.setsockopt(socket.IPPROTO_IP, const.IP_MTU_DISCOVER, const.PMTUDISC_DO)
    for _ in range(2):
        with pytest.raises(OSError, match="too long"):
            sender.send(bytes(65_530))
    errors = read_errors(sender)
    assert [(error.errno, error.is_icmp) for error in errors] == [(errno.EMSGSIZE, False)] * 2
    with pytest.raises(OSError, match="too long"):
        sender.send(bytes(65_530))
    assert returned_datagrams(sender) == []


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EMSGSIZE, Drop.UNDERLAY_TOO_BIG),
        (errno.ENETUNREACH, Drop.UNDERLAY_UNREACHABLE),
        (errno.EPERM, Drop.UNDERLAY_DENIED),
        (errno.EIO, Drop.UNDERLAY_FAILED),
        (None, Drop.UNDERLAY_FAILED),
    ],
)
def test_drop_reasons_of_send_errors(number: int | None, reason: Drop) -> None:
    assert drop_reason(number) is reason
