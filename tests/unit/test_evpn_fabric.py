"""EVPN of a process that has none: nothing is loaded, and requests say what to do."""

import subprocess
import sys
from typing import Any

import pytest

from tests.unit.test_control_methods import Still, ask
from vtep.config import Config, Settings
from vtep.config.evpn import EvpnSettings
from vtep.control.params import Params
from vtep.errors import ConfigError, VtepError
from vtep.evpn.fabric import Fabric, check_neighbors


def test_a_process_without_evpn_loads_nothing_of_it() -> None:
    code = (
        "import sys, vtep.cli.run\n"
        "print(*sorted(name for name in sys.modules if name.startswith('vtep.evpn')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["vtep.evpn", "vtep.evpn.fabric"]


def test_requests_of_a_speaker_are_refused() -> None:
    vtep = Still(Config(vni=1, remote="192.0.2.2", tap="vx0"))
    fabric = Fabric(vtep)
    for name in ("evpn.attach", "evpn.config", "evpn.report", "evpn.restart"):
        with pytest.raises(VtepError, match="there is no EVPN: give --evpn-neighbor, or a table"):
            fabric.methods[name].function(Params({"token": "x"}))
    assert fabric.state() == {}
    for method, given in (
        ("set", {"vni": 1, "options": {"evpn": True}}),
        ("vni.add", {"vni": 2, "options": {"evpn": True}}),
    ):
        with pytest.raises(ConfigError, match=r"add a table \[evpn\] with asn and neighbor"):
            ask(vtep, method, **given)


def test_a_neighbour_is_another_process() -> None:
    def check(neighbor: str, **options: Any) -> None:
        evpn = EvpnSettings(asn=1, neighbor=["198.51.100.1", neighbor], **options)
        check_neighbors(Settings(segments=[], evpn=evpn))

    for own in ("127.0.0.1", "127.0.0.2", "::1"):
        with pytest.raises(ConfigError, match=f"^--evpn-neighbor {own}: is an address of this hos"):
            check(own)
        check(own, listen=False)
        check(f"{own},port=1790")
    check_neighbors(Settings(segments=[]))
