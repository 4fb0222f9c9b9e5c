"""The firewall rules of this host, listed with nft and iptables-save.

`firewall` evaluates what they do with a packet.
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

from vtep.host import firewall, iptables, nftables
from vtep.host.firewall import PacketPattern, Table, Verdict

_COMMAND_TIMEOUT_S = 10.0


@frozen
class IptablesDump:
    """The rules of one variant of iptables or ip6tables."""

    version: int
    """The IP version of the packets that pass these rules."""
    program: str
    """The program that changes the rules."""
    lines: tuple[str, ...]
    in_nft: bool
    """True if the kernel keeps them in nftables, where `nft` lists them, too."""


@frozen
class Rules:
    """The rules of this host's firewall, as they are listed."""

    nft: Mapping[str, Any]
    """The output of `nft -j list ruleset`."""
    listing: str
    """The output of `nft -a list ruleset`."""
    iptables: tuple[IptablesDump, ...]

    @classmethod
    def read(cls) -> "Rules":
        """List the rules, as far as there are programs and the privilege to do so."""
        nft: Mapping[str, Any] = {}
        with suppress(ValueError):
            nft = json.loads(_output("nft", "-j", "list", "ruleset") or "{}")
        listing = _output("nft", "-a", "list", "ruleset")
        return cls(nft, listing, (*_dumps(4, "iptables"), *_dumps(6, "ip6tables")))

    def verdict(self, packet: PacketPattern, *hooks: str) -> Verdict | None:
        """Return what drops a packet at these hooks, if anything does."""
        return firewall.evaluate(list(self._tables(packet)), hooks)

    def _tables(self, packet: PacketPattern) -> Iterator[Table]:
        """Yield all tables as they apply to a packet, each once."""
        # Tables that iptables keeps in nftables are listed twice. In the list of nft, extensions of
        # iptables are opaque ("xt"), so take them from iptables.
        known: set[tuple[str, str]] = set()
        for dump in self.iptables:
            if dump.in_nft:
                family = "ip" if dump.version == 4 else "ip6"
                known |= {(family, name) for name in _tables_of(dump.lines)}
        yield from nftables.read(_without(self.nft, known), packet, self.listing)
        for dump in self.iptables:
            if dump.version == packet.version and packet.bridge is None:
                yield from iptables.read(dump.lines, packet, dump.program)


def _dumps(version: int, program: str) -> Iterator[IptablesDump]:
    """List the rules of both variants of iptables, legacy and nf_tables, as far as in use."""
    version_text = _output(program, "-V")
    default = IptablesDump(version, program, _lines(f"{program}-save"), "nf_tables" in version_text)
    if version_text and (default.in_nft or _legacy_in_use(version)):
        yield default
    if default.in_nft and _legacy_in_use(version):
        legacy = f"{program}-legacy"
        yield IptablesDump(version, legacy, _lines(f"{legacy}-save"), in_nft=False)
    elif version_text and not default.in_nft:
        nft = f"{program}-nft"
        yield IptablesDump(version, nft, _lines(f"{nft}-save"), in_nft=True)


def _legacy_in_use(version: int) -> bool:
    """Return True if this network namespace has tables of legacy iptables.

    `iptables-legacy-save` would load the module and create the tables.
    """
    name = "ip_tables_names" if version == 4 else "ip6_tables_names"
    with suppress(OSError):
        return bool(Path(f"/proc/thread-self/net/{name}").read_text().strip())
    return False


_FOREIGN = re.compile(r"# Table `(\S+)' (?:contains|is) incompatible")
"""The comment of iptables-nft-save about a table that nft has made or changed."""


def _tables_of(lines: tuple[str, ...]) -> set[str]:
    """Return the names of the tables in a dump."""
    return {line[1:].strip() for line in lines if line.startswith("*")}


def _without(ruleset: Mapping[str, Any], tables: Collection[tuple[str, str]]) -> Mapping[str, Any]:
    """Return a ruleset of nft without the chains and rules of these tables (family, name)."""

    def is_other(item: Mapping[str, Any]) -> bool:
        part = item.get("chain") or item.get("rule") or {}
        return (part.get("family"), part.get("table")) not in tables

    return {"nftables": [item for item in ruleset.get("nftables", []) if is_other(item)]}


def _lines(program: str) -> tuple[str, ...]:
    """Return the output of a variant of iptables-save, without the tables that it can't read."""
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
    """Return the output of a program; "" if it is not installed, fails or hangs."""
    # The PATH of an unprivileged user may lack the directories of these programs.
    path = shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *command[1:]],
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
