"""The control experiment of `steady_traffic`: it reports no fault where there is none."""

from tests.netns.hosts import Pair, Tunnel, wait_until
from tests.netns.steady_traffic import SteadyTraffic


def test_steady_traffic_notices_no_fault_where_there_is_none(pair: Pair, tunnel: Tunnel) -> None:
    """The faults that it reports in other tests are not its own.

    The rate is theirs: one that a busy machine forwards without a loss.
    """
    traffic = SteadyTraffic(*pair, "10.0.0.1", "10.0.0.2", rate=500)
    began = tunnel[0].counter("tx_frames")
    wait_until(lambda: tunnel[0].counter("tx_frames") > began + 3000, "3,000 frames")
    report = traffic.stop()
    assert report.sent > 1000  # The others are of TCP and of the pings.
    assert report.lost == report.duplicated == report.reordered_by == 0, report
    assert report.tap_drops == report.socket_drops == report.receiver_drops == 0, report
    assert report.tcp_alive, report
    assert report.pings_lost == 0, report
