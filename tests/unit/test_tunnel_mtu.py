"""The MTU of the tunnel, as paths to remotes get narrower and wider."""

from vtep.offload.tunnel_mtu import TunnelMtu


def test_the_narrowest_path_counts_while_it_is_narrow() -> None:
    mtu = TunnelMtu(1450)
    seen = []
    for host, octets in (
        *(("a", 1400), ("b", 1300), ("a", 1350), ("b", None), ("c", 9000), ("a", None)),
        *(("c", None), ("c", None)),
    ):
        mtu.set_path(host, octets)
        seen.append(mtu.now)
    assert seen == [1400, 1300, 1300, 1350, 1350, 1450, 1450, 1450]


def test_the_most_may_change() -> None:
    mtu = TunnelMtu(1450)
    mtu.set_path("a", 1400)
    mtu.most = 1380
    assert mtu.now == 1380


def test_the_tap_may_be_narrower() -> None:
    mtu = TunnelMtu(1450)
    for tap, expected in ((1400, 1400), (1500, 1450), (None, 1450)):
        mtu.tap = tap
        assert mtu.now == expected
    mtu.set_path("a", 1300)
    mtu.tap = 1350
    assert mtu.now == 1300


def test_two_remotes_of_one_host_have_a_path_each() -> None:
    mtu = TunnelMtu(1450)
    one, two = object(), object()
    mtu.set_path(one, 1300)
    mtu.set_path(two, 1400)
    mtu.set_path(two, None)
    assert mtu.now == 1300
