"""The firewall rules of this host, as its programs list them: a shell around nft and iptables-save.

What they do with a packet is evaluated in `firewall`.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from vtep.host import firewall
from vtep.host.firewall import Packet, Table, Verdict

_COMMAND_TIMEOUT = 10.0


@frozen
class Saved:
    """The rules of one variant of iptables or ip6tables."""

    version: int
    """The IP version of the packets that they see."""
    program: str
    """The program that changes them."""
    lines: tuple[str, ...]
    in_nft: bool
    """Whether the kernel keeps them in nftables, where `nft` lists them too."""


@frozen
class Rules:
    """The rules of this host's firewall, as they are listed."""

    nft: Mapping[str, Any]
    listing: str
    """The same as text."""
    saved: tuple[Saved, ...]

    @classmethod
    def read(cls) -> "Rules":
        """List the rules, as far as there are programs and the privilege to do so."""
        nft: Mapping[str, Any] = {}
        with suppress(ValueError):
            nft = json.loads(_output("nft", "-j", "list", "ruleset") or "{}")
        listing = _output("nft", "-a", "list", "ruleset")
        return cls(nft, listing, (*_saved(4, "iptables"), *_saved(6, "ip6tables")))

    def verdict(self, packet: Packet, *hooks: str) -> Verdict | None:
        """Return what drops a packet at these hooks, if anything does."""
        return firewall.evaluate(list(self._tables(packet)), hooks)

    def _tables(self, packet: Packet) -> Iterator[Table]:
        # What iptables keeps in nftables is better read from iptables, which knows all of it.
        known: set[tuple[str, str]] = set()
        for saved in self.saved:
            if saved.in_nft:
                family = "ip" if saved.version == 4 else "ip6"
                known |= {(family, name) for name in _tables_of(saved.lines)}
        yield from firewall.of_nft(_without(self.nft, known), packet, self.listing)
        for saved in self.saved:
            if saved.version == packet.version and packet.bridge is None:
                yield from firewall.of_iptables(saved.lines, packet, saved.program)


def _saved(version: int, program: str) -> Iterator[Saved]:
    """List the rules of both variants of iptables, of which both may be in use."""
    told = _output(program, "-V")
    default = Saved(version, program, _lines(f"{program}-save"), "nf_tables" in told)
    if told and (default.in_nft or _legacy_in_use(version)):
        yield default
    if default.in_nft and _legacy_in_use(version):
        legacy = f"{program}-legacy"
        yield Saved(version, legacy, _lines(f"{legacy}-save"), in_nft=False)
    elif told and not default.in_nft:
        nft = f"{program}-nft"
        yield Saved(version, nft, _lines(f"{nft}-save"), in_nft=True)


def _legacy_in_use(version: int) -> bool:
    """Return whether this network namespace has tables of the older iptables.

    To list them without need would make them.
    """
    name = "ip_tables_names" if version == 4 else "ip6_tables_names"
    with suppress(OSError):
        return bool(Path(f"/proc/thread-self/net/{name}").read_text().strip())
    return False


_FOREIGN = re.compile(r"# Table `(\S+)' (?:contains|is) incompatible")


def _tables_of(lines: tuple[str, ...]) -> set[str]:
    """Return the names of the tables that iptables lists."""
    return {line[1:].strip() for line in lines if line.startswith("*")}


def _without(ruleset: Mapping[str, Any], tables: Collection[tuple[str, str]]) -> Mapping[str, Any]:
    def is_other(item: Mapping[str, Any]) -> bool:
        of = item.get("chain") or item.get("rule") or {}
        return (of.get("family"), of.get("table")) not in tables

    return {"nftables": [item for item in ruleset.get("nftables", []) if is_other(item)]}


def _lines(program: str) -> tuple[str, ...]:
    """List the rules of a variant of iptables, without the tables that it can't read."""
    lines = _output(program).splitlines()
    foreign = {found[1] for line in lines if (found := _FOREIGN.match(line)) is not None}
    kept, keep = list[str](), True
    for line in lines:
        if line.startswith("*"):
            keep = line[1:].strip() not in foreign
        if keep:
            kept.append(line)
    return tuple(kept)


def _output(*command: str) -> str:
    """Return what a program prints; nothing where it is not there or fails."""
    path = shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *command[1:]],
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
