"""Reports of the speaker: their limits, and the parts in which they reach the daemon."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit import evpn_fake
from tests.unit.test_evpn_daemon_link import daemon, run
from vtep.control import jsonrpc
from vtep.control.evpn_schema import ITEMS_MAX, VALUES_MAX, EvpnReport
from vtep.evpn.daemon_link import DaemonLink
from vtep.evpn.fabric import REPORT
from vtep.evpn.report_parts import ReportCollector, bounded, parts
from vtep.evpn.reports import empty_report


def of_vnis(count: int) -> EvpnReport:
    return evpn_fake.report(segments=[evpn_fake.segment(vni) for vni in range(1, count + 1)])


def of_fabric(vteps: int, vnis: int) -> EvpnReport:
    """Return the report in a fabric of VTEPs with VNIs that this host has not."""
    return evpn_fake.report(
        unmatched=[
            evpn_fake.unmatched(
                *(f"65000:{vni}" for vni in range(1000, 1000 + vnis)),
                vtep=f"10.1.{number >> 8}.{number & 255}",
                vnis=list(range(1000, 1000 + vnis)),
            )
            for number in range(vteps)
        ],
        not_installed={"route-target": vteps * vnis},
    )


def collected(report: Mapping[str, Any]) -> EvpnReport | None:
    collector = ReportCollector()
    found = None
    for part in parts(report):
        assert found is None
        number, more = part.pop("part"), part.pop("more", False)
        found = collector.add(part.items(), number, more=more)
    return found


def test_a_report_of_any_length_is_sent_in_requests_that_the_daemon_takes(tmp_path: Path) -> None:
    calls: list[str] = []
    collector = ReportCollector()
    got: list[EvpnReport] = []

    def call(method: str, params: dict[str, Any]) -> Any:
        calls.append(method)
        if method == "evpn.report":
            part = [(name, params[name]) for name in REPORT if name in params]
            report = collector.add(part, params["part"], more=params.get("more", False))
            got.extend([report] if report is not None else [])
        return {"generation": 1}

    async def main() -> None:
        async with daemon(tmp_path / "socket", call):
            link = DaemonLink(tmp_path / "socket", "right")
            await link.attach()
            for report in (of_vnis(500), of_fabric(100, 50), evpn_fake.report()):
                await link.report({**report})
                assert got[-1] == report
            link.close()

    run(main())
    assert len(got) == 3
    assert calls.count("evpn.attach") == 1
    assert calls.count("evpn.report") > 3


def test_each_part_fits_into_a_request() -> None:
    for report in (of_vnis(4000), of_fabric(1000, 100), empty_report()):
        assert collected(report) == report
        for part in parts(report):
            line = jsonrpc.request("evpn.report", {**part, "token": "x" * 32}, 1 << 32)
            assert len(line) <= jsonrpc.LINE_MAX


def test_what_a_fabric_could_make_long_is_cut_and_own_vnis_come_first() -> None:
    own = evpn_fake.unmatched(vtep="10.9.9.9", vnis=[*range(5000, 6000), 100])
    report = of_fabric(ITEMS_MAX + 500, 2)
    report["unmatched"].append(own)
    report["problems"] = ["x" * 100_000]
    cut = bounded(report)
    assert len(cut["unmatched"]) == ITEMS_MAX
    assert cut["unmatched"][0] == {**own, "vnis": [100, *range(5000, 5000 + VALUES_MAX - 1)]}
    assert cut["unmatched"][1:] == report["unmatched"][: ITEMS_MAX - 1]
    assert all(len(line) <= 1000 for line in cut["problems"])
    many = of_vnis(ITEMS_MAX + 500)
    assert bounded(many) == many
    assert len(report["unmatched"]) == ITEMS_MAX + 501


def test_a_part_that_is_repeated_or_follows_none_is_ignored() -> None:
    collector = ReportCollector()

    def add(number: int, vni: int, *, more: bool) -> EvpnReport | None:
        return collector.add([("segments", [evpn_fake.segment(vni)])], number, more=more)

    def vnis(report: EvpnReport | None) -> list[int] | None:
        return None if report is None else [each["vni"] for each in report["segments"]]

    # The one before it went to the process that this one has replaced.
    assert add(1, 2, more=True) is None
    assert add(2, 3, more=False) is None
    assert add(0, 1, more=True) is None
    assert add(0, 1, more=True) is None
    assert add(1, 2, more=True) is None
    assert add(1, 2, more=True) is None
    assert vnis(add(2, 3, more=False)) == [1, 2, 3]
    assert add(2, 3, more=False) is None
    assert vnis(add(0, 7, more=False)) == [7]


def test_requests_are_repeated_at_ever_longer_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon builds the configuration for each that attaches, in its forwarding loop."""
    pauses: list[float] = []
    calls: list[str] = []

    async def slept(seconds: float) -> None:
        if seconds:  # Others let frames have their turn.
            pauses.append(seconds)

    def call(method: str, _: dict[str, Any]) -> Any:
        calls.append(method)
        if method == "ping" and calls.count("ping") < 8:
            raise jsonrpc.RpcError(jsonrpc.Code.HANDED_OVER, "another process has taken over")
        return {"generation": 1}

    async def main() -> None:
        async with daemon(tmp_path / "socket", call):
            link = DaemonLink(tmp_path / "socket", "right")
            await link.attach()
            with monkeypatch.context() as patch:
                patch.setattr("vtep.evpn.daemon_link.asyncio.sleep", slept)
                await link.call("ping")
            link.close()

    run(main())
    assert pauses == sorted(pauses)
    assert len(pauses) == 6
    assert pauses[-1] == 1.0
