"""The keys of a configuration file with the fields that they set, and those of other programs."""

from typing import Any, Final

import attrs

from vtep.config import Config, Settings, vlans
from vtep.config.evpn import EvpnSettings
from vtep.config.evpn_neighbors import Neighbor

TABLE: Final = "vni"
"""The array of tables with the segments."""

ID: Final = "id"
"""The key of the VNI there."""

VLANS: Final = "vlan"
EVPN: Final = "evpn"
"""The table with the BGP sessions, and the key of a segment that takes part."""


def _by_key(fields: "tuple[attrs.Attribute[Any], ...]") -> "dict[str, attrs.Attribute[Any]]":
    return {field.name.replace("_", "-"): field for field in fields}


CONFIG_KEYS = _by_key(attrs.fields(Config))
SEGMENT_KEYS = CONFIG_KEYS | {ID: CONFIG_KEYS["vni"]}
del SEGMENT_KEYS["vni"]
DEFAULT_KEYS = {
    key: field
    for key, field in SEGMENT_KEYS.items()
    if key not in (ID, "tap", "vlan", "mac", "address", "rd", EVPN)
    and not key.startswith("route-target")
}
"""Keys above the tables that are defaults of all segments."""

MAPPED_KEYS = {**SEGMENT_KEYS, VLANS: vlans.MAPPING}
"""Keys of a table without an id, whose VNIs are those that its VLANs are mapped to."""

PROCESS_KEYS = _by_key(attrs.fields(Settings))
del PROCESS_KEYS["segments"], PROCESS_KEYS[EVPN]
EVPN_KEYS = _by_key(attrs.fields(EvpnSettings))
NEIGHBOR_KEYS = _by_key(attrs.fields(Neighbor))

SYNONYMS: Final = {
    "vni": ID,
    "peer": "remote",
    "peers": "remote",
    "port": "dstport",
    "device": "dev",
    "interface": "dev",
    "master": "bridge",
    "name": "tap",
    "ip": "address",
    "maxaddress": "max-addresses",
    "rt": "route-target",
    "route-distinguisher": "rd",
}
"""Keys of other programs, with the key of the same meaning here."""

EVPN_SYNONYMS: Final = {
    "as": "asn",
    "as-number": "asn",
    "local-as": "asn",
    "remote-as": "asn",
    "peer-as": "asn",
    "peer": "neighbor",
    "peers": "neighbor",
    "reflector": "neighbor",
    "remote": "neighbor",
    "rt": "route-target",
    "md5": "password",
    "key": "password",
    "holdtime": "hold-time",
    "ip": "address",
    "id": "router-id",
}
"""The same for the table [evpn] and its neighbours."""
