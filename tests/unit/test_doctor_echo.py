"""The meaning of socket errors for the doctor's echo client."""

import errno

import pytest

from vtep.doctor.echo import refusal, reported_mtu
from vtep.doctor.facts import Refusal
from vtep.io import socket_constants as const
from vtep.io.error_queue import QueuedError

ICMP, ICMP6 = const.SO_EE_ORIGIN_ICMP, const.SO_EE_ORIGIN_ICMP6
LOCAL = 1


def error(number: int, origin: int, code: int = 0, info: int = 0) -> QueuedError:
    return QueuedError("192.0.2.2", number, origin, 0, code, info, "192.0.2.254")


@pytest.mark.parametrize(
    ("origin", "code", "expected"),
    [
        (ICMP, 1, Refusal.HOST),
        (ICMP, 3, Refusal.PORT),
        (ICMP, 13, Refusal.FORBIDDEN),
        (ICMP6, 0, Refusal.HOST),
        (ICMP6, 1, Refusal.FORBIDDEN),
        (ICMP6, 4, Refusal.PORT),
    ],
)
def test_icmp_errors(origin: int, code: int, expected: Refusal) -> None:
    assert refusal(error(errno.ECONNREFUSED, origin, code)) is expected


def test_errors_of_this_host() -> None:
    assert refusal(error(errno.EHOSTUNREACH, LOCAL)) is Refusal.HOST
    assert refusal(error(errno.ENOBUFS, LOCAL)) is None


@pytest.mark.parametrize("origin", [LOCAL, ICMP, ICMP6])
def test_packets_that_are_too_large(origin: int) -> None:
    too_large = error(errno.EMSGSIZE, origin, 4, info=1400)
    assert (reported_mtu(too_large), refusal(too_large)) == (1400, None)
    # Routers older than RFC 1191 report no MTU.
    assert reported_mtu(error(errno.EMSGSIZE, origin, 4)) is None
    assert reported_mtu(error(errno.ECONNREFUSED, origin, 3, info=1400)) is None
