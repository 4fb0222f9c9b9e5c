"""Options of a port: each of them is applied at start, and when it changes while the port runs."""

import asyncio
import logging
import socket
from collections.abc import Mapping
from contextlib import closing
from ipaddress import IPv4Address, IPv6Address
from itertools import repeat
from typing import Any

import attrs
import pytest

from vtep import Config, Vtep, VtepError
from vtep.counters import Counters
from vtep.daemon.build import (
    APPLIERS,
    FIXED_OPTIONS,
    LISTENER_OPTIONS,
    TAP_OPTIONS,
    WATCHED_OPTIONS,
)
from vtep.forwarding.remote_counters import CountersByHost
from vtep.testing import MemoryUnderlay
from vtep.testing.memory_network import MemoryNetwork

OWN = "192.0.2.1", "2001:db8::1"
FRAME = b"\xff" * 6 + b"\2\0\0\0\0\7" + bytes(50)
BASE = {"vni": 1, "remote": ("192.0.2.2", "2001:db8::2"), "tap": "vx0"}

CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "remote": ({}, ("192.0.2.3", "2001:db8::2")),
    "group": ({"dev": "eth0"}, "239.1.1.1"),
    "bridge": ({}, "br0"),
    "docker_network": ({}, "mynetwork"),
    "docker_host": ({"docker_network": "mynetwork"}, "tcp://192.0.2.9:2375"),
    "evpn": ({}, True),
    "route_target": ({"evpn": True}, "65000:1"),
    "route_target_import": ({"evpn": True}, "65000:1"),
    "route_target_export": ({"evpn": True}, "65000:1"),
    "rd": ({"evpn": True}, "192.0.2.1:1"),
    "persist": ({}, True),
    "local": ({}, OWN),
    "dev": ({}, "eth0"),
    "dstport": ({}, 4790),
    "srcport": ({}, (50000, 50001)),
    "ttl": ({}, 5),
    "tos": ({}, 0x20),
    "ecn": ({}, "kernel"),
    "df": ({}, "set"),
    "flowlabel": ({}, 7),
    "udpcsum": ({}, False),
    "udp6zerocsumtx": ({}, True),
    "udp6zerocsumrx": ({}, False),
    "mtu": ({}, 1300),
    "mss_clamp": ({}, 1000),
    "mac": ({}, "02:00:00:00:00:77"),
    "address": ({}, ("10.0.0.1/24",)),
    "anycast_gateway": ({}, ("10.0.0.254",)),
    "learning": ({}, False),
    "ageing": ({}, 60),
    "max_addresses": ({}, 100),
    "max_addresses_per_remote": ({}, 10),
    "mac_move_limit": ({}, 2),
    "mac_move_hold": ({}, 10),
    "storm_broadcast": ({}, 5),
    "storm_multicast": ({}, "5:9"),
    "storm_unknown_unicast": ({}, "off"),
    "liveness_interval": ({}, 3),
    "loop_block": ({}, 10),
    "proxy": ({}, True),
    "accept": ({}, ("198.51.100.0/24",)),
    "accept_any": ({}, True),
    "reserved_bits": ({}, "strict"),
    "gbp": ({}, 5),
    "gbp_accept": ({"gbp": 0}, (3,)),
    "inner_vlan": ({}, "strip"),
    "offload": ({}, "none"),
    "fast_path": ({}, False),
}
"""For each option that can change, other options that it needs, and a new value."""

VOLATILE = {
    # Times, and caches.
    *("updated", "used", "_swept", "_wheel", "last_look", "_answers"),
    *("_tokens", "_filled", "is_used"),
    # Descriptors, memory, and lines that were logged.
    *(
        "_warned",
        "_buffer",
        "_messages_at",
        "_arena",
        "_merger",
        "_splitter",
        "_virtio",
        "fd",
        "_fd",
        "index",
    ),
    # The world around the port.
    *(
        "_network",
        "_sockets",
        "link_changes",
        "network_changes",
        "_loop",
        "host",
        "_host",
        "_receivers_on_port",
        "_vtep_end",
        "_test_end",
    ),
    *("probe_mac", "_own_macs"),  # The first one is random, and a part of the other one.
}


def state_of(value: object, above: frozenset[int] = frozenset()) -> Any:
    """Return all state below an object as plain values that can be compared.

    `above` are the objects by which it was reached.
    """
    if isinstance(value, str | bytes | int | float | None | IPv4Address | IPv6Address):
        return value
    counts = Counters | CountersByHost
    if isinstance(value, socket.socket | memoryview | bytearray | counts) or callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    if isinstance(value, Mapping):
        items = [(state_of(key, above), state_of(item, above)) for key, item in value.items()]
        found: Any = sorted(items, key=repr)
        if type(value) is dict:
            return found
    elif isinstance(value, list | tuple):
        found = [state_of(item, above) for item in value]
    elif isinstance(value, set | frozenset):
        found = sorted((state_of(item, above) for item in value), key=repr)
    else:
        found = None
    if not type(value).__module__.startswith("vtep"):
        return found if found is not None else type(value).__name__
    if id(value) in above:
        return "..."
    above |= {id(value)}
    names = {*getattr(value, "__dict__", ())}
    for cls in type(value).__mro__:
        names |= {*getattr(cls, "__slots__", ())} - {"__weakref__"}
    return {
        "type": type(value).__name__,
        "items": found,
        **{
            name: state_of(getattr(value, name), above)
            for name in sorted(names - VOLATILE)
            if hasattr(value, name)
        },
    }


@pytest.fixture(autouse=True)
def _same_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all TAPs one index: their runs are to be compared."""
    monkeypatch.setattr("vtep.testing.tap._INDICES", repeat(1000))


async def state_when_run(first: Config, *changes: Config) -> Any:
    """Return the state of a port that was started and then changed, and what it sends."""
    with closing(MemoryUnderlay()) as underlay:
        host = underlay.add_host(*OWN)
        network = MemoryNetwork(host)
        network.add_device("br0", kind="bridge")
        async with Vtep(first, network=network, sockets=host) as vtep:
            port = vtep.port
            for config in changes:
                await vtep.change(config)
            assert vtep.port is port
            network.taps["vx0"].send(FRAME)
            async with asyncio.timeout(60):
                while not underlay.trace:  # noqa: ASYNC110  nothing could set an event
                    await asyncio.sleep(0)
            # Copies of what a change replaces, which a start and a change could leave alike.
            egress = port._egress
            assert egress is not None
            assert port.segment.header == port.sizing.oversize._prefix == egress._header
            assert egress._transmitter.paths is port.paths
            device = network.devices["vx0"]
            shown = {
                "port": port,
                "pool": vtep._pool,
                "listeners": port.listeners,
                "groups": [listener.groups for listener in port.listeners],
                "tap": network.taps["vx0"],
                "device": (device.mtu, device.master, device.mac, device.addresses),
                "sent": underlay.trace,
            }
            return state_of(shown)


_STARTED: dict[Config, Any] = {}


async def state_when_started(config: Config) -> Any:
    """Return the state of a port that was only started, which must be the same each time.

    Most options begin with the same one, and a walk over all objects takes its time.
    """
    if config not in _STARTED:
        state = _STARTED[config] = await state_when_run(config)
        assert differences(await state_when_run(config), state) == []
    return _STARTED[config]


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Return the places in which two states differ."""
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [line for key in one for line in differences(one[key], two[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [
            line
            for number, (left, right) in enumerate(zip(one, two, strict=True))
            for line in differences(left, right, f"{where}[{number}]")
        ]
    return [] if one == two else [f"{where}: {one!r} != {two!r}"]


def test_each_option_is_in_the_table() -> None:
    options = {field.name for field in attrs.fields(Config)}
    applied = {name for applier in APPLIERS for name in applier.options}
    changeable = {*applied, *TAP_OPTIONS, *LISTENER_OPTIONS, *WATCHED_OPTIONS}
    assert changeable | FIXED_OPTIONS.keys() == options
    assert not changeable & FIXED_OPTIONS.keys()
    assert CASES.keys() == changeable
    assert all(FIXED_OPTIONS.values())


@pytest.mark.parametrize("option", CASES)
def test_changing_an_option_equals_starting_with_it(
    option: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    needs, value = CASES[option]
    before = Config(**{**BASE, **needs})
    after = attrs.evolve(before, **{option: value})

    async def main() -> None:
        started_before = await state_when_started(before)
        started = await state_when_run(after)
        assert differences(started, started_before), "no state shows this option"
        changed = await state_when_run(before, after)
        assert differences(changed, started) == []
        if option != "mac":  # Without --mac, any MAC address will do: the TAP keeps the last one.
            changed_back = await state_when_run(after, before)
            assert differences(changed_back, started_before) == []

    asyncio.run(main())


def test_fixed_options_do_not_change_a_port() -> None:
    async def main() -> None:
        with closing(MemoryUnderlay()) as underlay:
            host = underlay.add_host(*OWN)
            config = Config(vni=1, remote="192.0.2.2", tap="vx0")
            async with Vtep(config, network=MemoryNetwork(host), sockets=host) as vtep:
                port = vtep.port
                with pytest.raises(VtepError, match="no such VNI"):
                    await vtep.change(attrs.evolve(config, vni=2))
                await vtep.change(attrs.evolve(config, tap="vx1"))
                assert (vtep.tap, vtep.port is port) == ("vx1", False)

    asyncio.run(main())
    assert {"vni", "tap", "vlan", "netns", "tap_fd"} == FIXED_OPTIONS.keys()
