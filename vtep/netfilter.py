"""The firewall rules of this host, as its programs list them: a shell around nft and iptables-save.

What they do with a packet is judged in `firewall`.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from attrs import frozen

from vtep import firewall
from vtep.firewall import Packet, Table, Verdict

_COMMAND_TIMEOUT = 10.0


@frozen
class Rules:
    """The rules of this host's firewall, as they are listed."""

    nft: Mapping[str, Any]
    iptables: Mapping[int, tuple[str, ...]]
    """By IP version, where `nft` does not list them."""

    @classmethod
    def read(cls) -> "Rules":
        """As far as there are programs, and the privilege, to list them."""
        nft: Mapping[str, Any] = {}
        with suppress(ValueError):
            nft = json.loads(_output("nft", "-j", "list", "ruleset") or "{}")
        programs = {4: "iptables-save", 6: "ip6tables-save"}
        return cls(nft, {version: _lines(program) for version, program in programs.items()})

    def verdict(self, packet: Packet, *hooks: str) -> Verdict | None:
        """What drops a packet at one of these hooks."""
        # What iptables keeps in nftables is better told by iptables, which knows all of it.
        of_iptables = firewall.of_iptables(self.iptables.get(packet.version, ()), packet)
        nft = _without_iptables(self.nft) if of_iptables else self.nft
        tables: list[Table] = [*firewall.of_nft(nft, packet), *of_iptables]
        verdicts = [firewall.judge(tables, hook) for hook in hooks]
        found = [verdict for verdict in verdicts if verdict is not None]
        return next((one for one in found if one.certain), next(iter(found), None))


_OF_IPTABLES = {"filter", "mangle", "nat", "raw", "security"}


def _without_iptables(ruleset: Mapping[str, Any]) -> Mapping[str, Any]:
    def is_other(item: Mapping[str, Any]) -> bool:
        of = item.get("chain") or item.get("rule") or {}
        return of.get("family") not in ("ip", "ip6") or of.get("table") not in _OF_IPTABLES

    return {"nftables": [item for item in ruleset.get("nftables", []) if is_other(item)]}


def _lines(program: str) -> tuple[str, ...]:
    return tuple(_output(program).splitlines())


def _output(*command: str) -> str:
    """What a program prints; nothing where it is not there or fails."""
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
