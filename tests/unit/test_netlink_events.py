"""Parsing of link events."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_link_table import message
from vtep.host.netlink_events import changed_links


def test_changed_links_are_those_of_the_events_and_their_masters() -> None:
    assert changed_links(b"") == set()
    assert changed_links(message(3)) == {3}
    assert changed_links(message(3, lower=4, master=7) + message(5, kind="veth")) == {3, 5, 7}
    # A receive buffer may end within a message.
    assert changed_links(message(3, master=7)[:-4]) == {3}


@given(st.binary(max_size=200), st.integers(0, 64))
def test_any_octets(octets: bytes, at: int) -> None:
    changed_links(octets)
    changed_links(message(1, master=2)[:at] + octets)
