"""IngressFilter: the programs, run by an interpreter and by the kernel, say what the set says."""

import ctypes
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.forwarding.ingress_filter import INSTRUCTIONS_MAX, IngressFilter

ACCEPT, REJECT = 7, 3
SIZE = struct.calcsize("=HBBI")
Network = IPv4Network | IPv6Network


def interpret(program: bytes, version: int, source: str, device: int) -> int:
    """Run a program as linux/filter.h has it: jumps go forward, and offsets are negative here."""
    code = list(struct.iter_unpack("=HBBI", program))
    address = ip_address(source).packed
    header = bytes({4: 12, 6: 8}[version]) + address + address
    accumulator = at = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        match operation:
            case 0x20:
                offset = operand - (1 << 32)
                if offset == -0x1000 + 8:
                    accumulator = device
                else:
                    start = offset + 0x100000
                    accumulator = int.from_bytes(header[start : start + 4], "big")
            case 0x05:
                at += operand
            case 0x15:
                at += if_true if accumulator == operand else if_false
            case 0x25:
                at += if_true if accumulator > operand else if_false
            case 0x35:
                at += if_true if accumulator >= operand else if_false
            case 0x06:
                return int(operand)
            case _:
                pytest.fail(f"no operation {operation:#x}")


def says(what: IngressFilter, source: str, device: int) -> bool:
    value = interpret(what.program(ACCEPT, REJECT), what.version, source, device)
    assert value in (ACCEPT, REJECT)
    return value == ACCEPT


# Few different words, so that addresses have some in common and are next to each other.
WORDS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 0x20010DB8, 0x20010DB9, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
    st.integers(0, 0xFFFFFFFF),
)
V4 = st.builds(lambda word: str(ip_address(word)), WORDS)
V6 = st.builds(
    lambda *words: str(ip_address(struct.pack("!4I", *words))), WORDS, WORDS, WORDS, WORDS
)
ADDRESSES = {4: V4, 6: V6}
DEVICES = st.integers(1, 12)


@st.composite
def networks(draw: st.DrawFn, version: int) -> Network:
    length = draw(st.integers(0, {4: 32, 6: 128}[version]))
    return ip_network(f"{draw(ADDRESSES[version])}/{length}", strict=False)


@st.composite
def cases(draw: st.DrawFn) -> tuple[IngressFilter, list[str], list[Network], set[int], list[str]]:
    version = draw(st.sampled_from([4, 6]))
    hosts = draw(st.lists(ADDRESSES[version], max_size=40))
    others = draw(st.lists(networks(version), max_size=4))
    denied = draw(st.sets(DEVICES, max_size=6))
    near = [
        str(ip_address((int(ip_address(host)) + step) % (1 << {4: 32, 6: 128}[version])))
        for host in hosts[:5]
        for step in (-1, 1)
        if version == 4 or (int(ip_address(host)) + step) % (1 << 128) >> 32
    ]
    asked = [*hosts, *near, *draw(st.lists(ADDRESSES[version], min_size=1, max_size=5))]
    asked = [host for host in asked if (":" in host) is (version == 6)]
    return IngressFilter.of(version, hosts, others, denied), hosts, others, denied, asked


@given(cases(), DEVICES)
def test_programs_say_what_the_set_says(
    case: tuple[IngressFilter, list[str], list[Network], set[int], list[str]], device: int
) -> None:
    what, hosts, others, denied, asked = case
    for source in asked:
        known = source in hosts or any(ip_address(source) in network for network in others)
        assert what.accepts(source, device) is (known and device not in denied)
        assert says(what, source, device) is what.accepts(source, device)


@given(cases(), DEVICES, st.integers(1, 12))
def test_a_coarser_filter_keeps_out_no_source_that_is_accepted(
    case: tuple[IngressFilter, list[str], list[Network], set[int], list[str]],
    device: int,
    most: int,
) -> None:
    what, _, _, _, asked = case
    coarse = what.coarsened(most)
    assert len(coarse.sources) <= max(most, 1)
    for source in asked:
        assert coarse.accepts(source, device) >= what.accepts(source, device)
        assert says(coarse, source, device) is coarse.accepts(source, device)


def test_hosts_of_the_other_version_and_scopes_do_not_matter() -> None:
    what = IngressFilter.of(6, ["192.0.2.1", "fe80::1%eth0"], [ip_network("10.0.0.0/8")], [])
    assert what == IngressFilter.of(6, ["fe80::1"], [], [])
    assert not what.accepts_all


@pytest.mark.parametrize("version", [4, 6])
def test_any_source(version: int) -> None:
    anybody = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    what = IngressFilter.of(version, ["192.0.2.1", "2001:db8::1"], anybody, [])
    assert what.accepts_all
    assert not IngressFilter.of(version, [], anybody, [5]).accepts_all


def spread(version: int, count: int) -> list[str]:
    """Addresses that have little in common."""
    base = 0 if version == 4 else 0x20010DB8 << 96
    step = 2654435761
    return [
        str(ip_address(base + (number * step) % (1 << 32) * (1 if version == 4 else 1 << 40)))
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize(("version", "count"), [(4, 2000), (6, 300)])
def test_so_many_hosts_fit_into_a_program(version: int, count: int) -> None:
    hosts = spread(version, count)
    what = IngressFilter.of(version, hosts, [], range(100, 3000, 20))
    program = what.program(ACCEPT, REJECT)
    assert len(program) // SIZE <= INSTRUCTIONS_MAX
    for host in hosts[::50]:
        assert interpret(program, version, host, 99) == ACCEPT
        assert interpret(program, version, host, 100) == REJECT


def test_a_fleet_of_neighbours_is_a_handful_of_comparisons() -> None:
    hosts = [f"10.0.{number >> 8}.{number & 255}" for number in range(10_000)]
    what = IngressFilter.of(4, hosts, [], [])
    assert len(what.program(ACCEPT, REJECT)) // SIZE < 10
    assert says(what, "10.0.39.15", 1)
    assert not says(what, "10.0.39.16", 1)


# --- the kernel -------------------------------------------------------------------------------

SO_ATTACH_FILTER = 26


@pytest.fixture(scope="module", params=[4, 6])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, socket.socket, socket.socket]]:
    """Return a receiver on the loopback device, and a sender."""
    version: int = request.param
    family, host = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}[version]
    with (
        socket.socket(family, socket.SOCK_DGRAM) as receiver,
        socket.socket(family, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((host, 0))
        receiver.setblocking(False)
        sender.connect(receiver.getsockname())
        yield version, receiver, sender


@given(data=st.data())
def test_the_kernel_says_the_same(
    ends: tuple[int, socket.socket, socket.socket], data: st.DataObject
) -> None:
    version, receiver, sender = ends
    own = sender.getsockname()[0]
    lo = socket.if_nametoindex("lo")
    near = st.integers(-3, 3).map(lambda step: str(ip_address(max(1, int(ip_address(own)) + step))))
    hosts = data.draw(st.lists(st.one_of(near, ADDRESSES[version]), max_size=40))
    hosts = [host for host in hosts if (":" in host) is (version == 6)]
    denied = data.draw(st.sets(st.integers(lo, lo + 20), max_size=4))
    others = data.draw(st.lists(networks(version), max_size=2))
    what = IngressFilter.of(version, hosts, others, denied)
    program = what.program(0xFFFF, 0)
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // SIZE, ctypes.addressof(buffer))
    receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
    sender.send(b"datagram")
    try:
        receiver.recv(100)
    except BlockingIOError:
        assert not what.accepts(own, lo)
    else:
        assert what.accepts(own, lo)
