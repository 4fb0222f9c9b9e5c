"""The tunnel of a bridge: without it, nothing is known of the addresses of other hosts."""

from contextlib import suppress
from typing import Any

from vtep.control.client import Client, candidates
from vtep.errors import VtepError
from vtep.host import netlink
from vtep.host.netlink import NetlinkError


def find_problem(bridge: str, index: int) -> str | None:
    """Return why no frame leaves a bridge for other hosts; None if no reason is known.

    Blocks: asks the kernel for the TAPs of the bridge, and their daemon for the underlay.
    """
    taps = open_taps(index)
    if not taps:
        return f"bridge {bridge} has no tunnel that is up"
    for candidate in candidates(ask=True):
        for segment in candidate.segments or () if candidate.here else ():
            if segment.dev in taps:
                # A daemon that has just ended or hangs is no reason: its TAP says so soon.
                with suppress(VtepError), Client(candidate.path) as daemon:
                    (info,) = daemon.vni.show(vni=segment.vni)
                    missing = info["underlay_missing"]
                    # With a device, some remotes are reached, if not all of them.
                    if missing and not info["underlay_devices"]:
                        return f"the tunnel {segment.dev} waits for its underlay ({missing[0]})"
    return None


def open_taps(bridge: int) -> set[str]:
    """Return the names of the TAPs on the bridge with an index that a process keeps open."""
    try:
        with netlink.session() as connection:
            ports = connection.link_lookup(master=bridge)
            # Without an index, `get_links` returns all devices.
            links = connection.get_links(*ports) if ports else ()
            return {str(link.get("ifname")) for link in links if _is_open_tap(link)}
    except NetlinkError:  # One of the ports was removed meanwhile.
        return set()


def _is_open_tap(link: Any) -> bool:
    # A TAP loses its carrier when the process that has it ends (tun_chr_close in drivers/net/tun.c
    # of the kernel).
    info = link.get("linkinfo")
    return info is not None and info.get("kind") == "tun" and bool(link.get("carrier"))
