"""Counters per remote: flooded frames count for each of them, at a cost that does not grow."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.remote_counters import _LISTS_MAX, CountersByHost
from vtep.forwarding.segment import Segment
from vtep.wire.ethernet import MAC_LEN

HOSTS = [f"192.0.2.{number}" for number in range(1, 6)]
MACS = [bytes((2, 0, 0, 0, 0, number)) for number in range(4)]
OWN_MAC = bytes((2, 9, 9, 9, 9, 9))


def segment() -> Segment:
    fdb = Fdb(5, 4789, ageing=0, max_addresses=0)
    return Segment(5, [Remote(HOSTS[0], 4789)], fdb, own_mac=OWN_MAC, learning=True)


STEPS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from(MACS), st.integers(1, 40)),
    st.tuples(st.just("append"), st.sampled_from([*MACS, bytes(MAC_LEN)]), st.sampled_from(HOSTS)),
    st.tuples(st.just("settle"), st.none(), st.none()),
)


@given(st.lists(STEPS, max_size=60))
def test_each_remote_has_what_was_sent_to_it(steps: list[tuple[str, bytes, int | str]]) -> None:
    one = segment()
    frames: Counter[str] = Counter()
    octets: Counter[str] = Counter()
    for step, mac, value in steps:
        if step == "send":
            count = int(value)
            route = one.route(mac + OWN_MAC + b"\x08\0")
            one.account(route, count, 100 * count)
            for remote in route.destinations:
                frames[remote.host] += count
                octets[remote.host] += 100 * count
        elif step == "append":
            one.fdb.append(mac, Remote(str(value), 4789), 0.0)
        else:
            one.remote_counters.settle()
    one.remote_counters.settle()
    remotes = one.remote_counters.items()
    assert {host: each.tx_frames for host, each in remotes if each.tx_frames} == frames
    assert {host: each.tx_bytes for host, each in remotes if each.tx_bytes} == octets


def test_a_flood_does_not_visit_the_remotes() -> None:
    counters = CountersByHost()
    remotes = tuple(Remote(f"10.0.{n >> 8}.{n & 255}", 4789) for n in range(1000))
    for _ in range(10):
        counters.count_sent_to_all(remotes, 2, 120)
    assert not counters
    counters.settle()
    assert len(counters) == 1000
    assert {(each.tx_frames, each.tx_bytes) for each in counters.values()} == {(20, 1200)}


def test_lists_that_wait_are_bounded() -> None:
    counters = CountersByHost()
    remotes = [Remote(host, 4789) for host in HOSTS[:2]]
    for _ in range(3 * _LISTS_MAX):
        counters.count_sent_to_all(list(remotes), 1, 60)
        assert len(counters._unsettled) <= _LISTS_MAX
    counters.settle()
    assert [each.tx_frames for each in counters.values()] == [3 * _LISTS_MAX] * 2


def test_what_a_host_has_sent_goes_with_it() -> None:
    one = segment()
    one.count_received(HOSTS[0], 3, 300, 7.0)
    assert (one.counters.rx_frames, one.counters.rx_bytes) == (3, 300)
    assert one.remote_counters[HOSTS[0]].last_rx == 7.0
    one.fdb.set_default((Remote(HOSTS[1], 4789),), 8.0)
    assert HOSTS[0] not in one.remote_counters
