"""The configuration that the daemon gives to its speaker, as JSON, and settings of the tables."""

import json
from ipaddress import IPv4Address, ip_address
from typing import Any

from vtep.config import Config
from vtep.config.evpn import EvpnSettings
from vtep.control import views
from vtep.evpn.local_entries import TapPlace
from vtep.evpn.speaker_config import SpeakerConfig, segment_settings, speaker_settings
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import RouteDistinguisher

SETTINGS = EvpnSettings(
    asn=65000, neighbor=["10.0.0.1", {"address": "fe80::1%eth0", "password": "x"}], stale_time=7
)
SEGMENTS = (
    Config(vni=100, evpn=True, local="192.0.2.1", bridge="br0", proxy=True),
    Config(vni=200, evpn=True, learning=True, rd="192.0.2.1:7", route_target="65000:9"),
)


def answer(*segments: Config, **more: Any) -> dict[str, Any]:
    """Return the answer of a daemon as the speaker gets it, with a few things of a newer one."""
    given = {
        "generation": 3,
        "version": "0.1.0",
        "settings": {**SETTINGS.to_json(), "newer": 1},
        "readers": "wheel",
        "changers": None,
        "is_restarted": True,
        "flushes": 2,
        "segments": [
            {
                "instance": number,
                "tap": config.tap,
                "bridge": config.bridge,
                "gateways": ["10.0.0.254"] if config.vni == 100 else [],
                "options": {**views.options(config), "newer": 1},
            }
            for number, config in enumerate(segments, 1)
        ],
    }
    return dict(json.loads(json.dumps(given | more)))


def test_a_configuration_is_the_same_after_its_way() -> None:
    config = SpeakerConfig.parse(answer(*SEGMENTS))
    assert config.settings == SETTINGS
    assert [each.config for each in config.segments.values()] == list(SEGMENTS)
    gateway = frozenset({ip_address("10.0.0.254")})
    assert config.places == {
        100: TapPlace("vx100", "br0", gateway),
        200: TapPlace("vx200", None, frozenset()),
    }
    assert config.segments[200].instance == 2
    assert config.segments[100].gateways == gateway
    assert config.locals == (IPv4Address("192.0.2.1"),)
    assert config.learning == (200,)
    assert SpeakerConfig.parse(answer(settings=None)).settings is None


def test_settings_of_the_tables() -> None:
    config = SpeakerConfig.parse(answer(*SEGMENTS))
    router_id = IPv4Address("192.0.2.1")
    speaker = speaker_settings(SETTINGS, router_id)
    assert speaker.neighbors == {"10.0.0.1", "fe80::1%eth0"}
    assert (speaker.stale_time, speaker.duplicate_mac) == (7, "warn")
    found = (ip_address("192.0.2.9"),)
    segments = segment_settings(config, SETTINGS, router_id, found, {})
    first, second = segments[100], segments[200]
    assert first.rd == RouteDistinguisher.of(router_id, 100)
    assert second.rd == RouteDistinguisher.parse("192.0.2.1:7")
    assert first.import_targets is None
    assert first.export_targets == frozenset({RouteTarget.of(65000, 100)})
    assert second.import_targets == second.export_targets == frozenset({RouteTarget.of(65000, 9)})
    assert (first.locals, second.locals) == ((router_id,), found)
    assert (first.proxy, second.proxy) == (True, False)
    # A route distinguisher stays, whatever VNIs come and go.
    again = segment_settings(config, SETTINGS, router_id, found, segments)
    assert again == segments
    # One that another VNI is given by hand is avoided.
    config = SpeakerConfig.parse(answer(SEGMENTS[0], Config(vni=9, evpn=True, rd="192.0.2.1:100")))
    given = segment_settings(config, SETTINGS, router_id, found, segments)
    assert [given[vni].rd.text for vni in (9, 100)] == ["192.0.2.1:100", "192.0.2.1:101"]


def test_the_vtep_address_stays_while_sessions_come_and_go() -> None:
    config = SpeakerConfig.parse(answer(*SEGMENTS))
    settings, router_id = config.settings, IPv4Address("10.0.0.9")
    assert settings is not None
    one, other, third = (ip_address(f"10.0.0.{number}") for number in (1, 2, 3))
    present = segment_settings(config, settings, router_id, (one, other), {})
    for found, expected in (
        ((other, one), (one, other)),
        ((other, third, one), (one, other, third)),
        ((other, third), (other, third)),  # This host has lost it.
        ((one, third, other), (other, one, third)),
        ((), ()),
        ((one, other), (one, other)),
    ):
        present = segment_settings(config, settings, router_id, found, present)
        assert present[200].locals == expected
        assert present[100].locals == (ip_address("192.0.2.1"),)
