"""LinkTable: the stack of devices, from rtnetlink messages that are made up here."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from vtep.host.link_table import LinkTable, changed_links

NEW, GONE = 16, 17
LINK, MASTER, INFO, NAMESPACE, KIND = 5, 10, 18, 37, 1
AF_BRIDGE = 7


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(
    index: int,
    *,
    what: int = NEW,
    family: int = 0,
    kind: str = "",
    **numbers: int,
) -> bytes:
    names = {"lower": LINK, "master": MASTER, "namespace": NAMESPACE}
    rest = b"".join(
        attribute(names[name], struct.pack("=i", number)) for name, number in numbers.items()
    )
    if kind:
        rest += attribute(INFO | 0x8000, attribute(KIND, kind.encode() + b"\0"))
    head = struct.pack("=IHHIIBxHiII", 32 + len(rest), what, 0, 0, 0, family, 1, index, 0, 0)
    return head + rest


def table(*messages: bytes) -> LinkTable:
    links = LinkTable()
    links.update(b"".join(messages))
    return links


def test_a_vrf_is_upper_to_its_ports_only() -> None:
    links = table(
        message(1, master=9),
        message(2, master=9, kind="veth", lower=3),
        message(3, kind="veth", lower=2),
        message(9, kind="vrf"),
    )
    assert links.with_upper([1]) == {1, 9}
    assert (links.vrf(2), links.vrf(3), links.vrf(9)) == (9, 0, 0)


def test_upper_devices_of_a_bridge_port() -> None:
    links = table(
        message(1, master=2),
        message(2, kind="bridge"),
        message(3, kind="vlan", lower=2),
        message(4, kind="macvlan", lower=3, master=5),
        message(5, kind="bridge"),
        message(6, kind="vlan", lower=7),
        message(7, master=2, kind="veth", lower=8),
        message(8, kind="veth", lower=7),
    )
    assert links.with_upper([1]) == {1, 2, 3, 4, 5, 8}


def test_the_index_of_a_device_in_another_namespace_is_ignored() -> None:
    links = table(
        message(1), message(2, kind="vlan", lower=1, namespace=0), message(3, kind="vlan", lower=1)
    )
    assert links.with_upper([1]) == {1, 3}


def test_a_loop_of_masters_ends() -> None:
    links = table(message(1, master=2, kind="bridge"), message(2, master=1, kind="bridge"))
    assert links.with_upper([1]) == {1, 2}


def test_a_port_that_leaves_a_bridge_is_not_removed() -> None:
    links = table(message(1, master=2), message(2, kind="bridge"))
    assert not links.update(message(1, what=GONE, family=AF_BRIDGE, master=2))
    assert links.with_upper([1]) == {1, 2}
    assert links.update(message(1, what=GONE))
    assert links.with_upper([1]) == {1}


def test_changed_links_are_those_of_the_messages_and_their_masters() -> None:
    assert changed_links(b"") == set()
    assert changed_links(message(3)) == {3}
    assert changed_links(message(3, lower=4, master=7) + message(5, kind="veth")) == {3, 5, 7}
    assert changed_links(message(3, family=AF_BRIDGE)) == {3}
    # A receive buffer may end within a message.
    assert changed_links(message(3, master=7)[:-4]) == {3}


@given(st.binary(max_size=200), st.integers(0, 64))
def test_any_octets(octets: bytes, at: int) -> None:
    changed_links(octets)
    changed_links(message(1, master=2)[:at] + octets)
    good = message(1, master=2, kind="bridge")
    LinkTable().update(octets)
    LinkTable().update(good[:at] + octets)
