"""A sudden end by SIGKILL, with `--persist` and `--state`, and a new start at once."""

import signal
from collections.abc import Callable
from pathlib import Path

from tests.netns.hosts import Pair, Pyvtep, segment, wait_until
from tests.netns.steady_traffic import SteadyTraffic


def test_connections_survive_a_kill(
    pair: Pair, start: Callable[..., Pyvtep], tmp_path: Path
) -> None:
    """All that is lost are the frames of the time in which no process was there.

    The TAP, its address, and the neighbor entries of the host outlast the process.
    """
    a, b = pair
    lasting = ("--persist", "--state", str(tmp_path / "state"), "--state-learned")
    arguments = (*segment(1, "192.0.2.2", "10.0.0.1/24"), *lasting)
    vtep = start(a, *arguments)
    far = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    traffic = SteadyTraffic(a, b, "10.0.0.1", "10.0.0.2")
    wait_until(lambda: far.counter("rx_frames") > 5_000, "5,000 frames")
    vtep.stop(signal.SIGKILL)
    # The kernel drops them with the carrier, unless it is told to keep them.
    assert "INCOMPLETE" not in a.run("ip", "neigh", "show", "dev", "vx0")
    again = start(a, *arguments)
    wait_until(lambda: again.counter("tx_frames") > 5_000, "5,000 frames from the TAP")
    wait_until(lambda: again.counter("rx_frames") > 5_000, "5,000 frames to the TAP")
    report = traffic.stop()
    assert report.tcp_alive, report
    assert report.duplicated == report.receiver_drops == 0, report
    # The other VTEP, which lost nothing by itself, sent to a closed port for a while.
    assert far.counter("tx_frames") > 5_000
    assert far.unexpected_drops() == 0
