"""Commands that have a base chain of the firewall accept a packet. No I/O."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from vtep.host.firewall import INCOMING, OUTGOING, PacketPattern


def nft_fix(chain: Mapping[str, Any], packet: PacketPattern, *, owned: bool) -> str:
    """Return the command for a base chain of nftables, as `nft -j` lists it.

    `owned` is True if the table belongs to a running program, and only that may change it
    (NFT_TABLE_F_OWNER).
    """
    if owned:
        if chain["table"] == "firewalld" and packet.port is not None:
            return f"firewall-cmd --add-port={packet.port}/udp"
        return f"have the program that owns the nftables table {chain['table']} accept it"
    if packet.port is not None:
        match = f"udp dport {packet.port} "
    else:
        into, out = _devices(chain.get("hook"), packet)
        match = f"iifname {_nft_name(into)} " if into is not None else ""
        match += f"oifname {_nft_name(out)} " if out is not None else ""
    return f"nft insert rule {chain['family']} {chain['table']} {chain['name']} {match}accept"


def iptables_fix(
    program: str, table: str, chain: str, hook: str | None, packet: PacketPattern
) -> str:
    """Return the command for a built-in chain of iptables or its variants."""
    option = "" if table == "filter" else f"-t {table} "
    if packet.port is not None:
        match = f"-p udp --dport {packet.port} "
    else:
        into, out = _devices(hook, packet)
        match = f"-i {into} " if into is not None else ""
        match += f"-o {out} " if out is not None else ""
    return f"{program} {option}-I {chain} {match}-j ACCEPT"


def _devices(hook: str | None, packet: PacketPattern) -> tuple[str | None, str | None]:
    """Return the receiving and the sending device that a fix at a hook is to match.

    The sending device is not known before the packet is routed, nor the receiving one of a packet
    of this host.
    """
    into = packet.device if hook in (*INCOMING, "forward") else None
    out = packet.out if hook in (*OUTGOING, "forward") else None
    if packet.accept_by is not None and packet.accept_by in (into, out):
        return (into, None) if into == packet.accept_by else (None, out)
    return into, out


def _nft_name(device: str) -> str:
    """Quote the name of a device for nft, and that for the shell, if it is needed."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", device)
    return device if plain else shlex.quote(f'"{device}"')
