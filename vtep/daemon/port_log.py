"""The log of a port: advice once, what the underlay lacks when that changes, and details."""

import logging
from collections.abc import Collection, Mapping

from vtep.forwarding.segment import Segment
from vtep.wire.address import Address
from vtep.wire.icmp import MTU_MIN_V6

log = logging.getLogger("vtep")

_NAMED_MAX = 3
"""Missing parts of the underlay that a log line names."""


class PortLog:
    """The log of one VNI, which knows the lines that are not to be repeated."""

    def __init__(self, vni: int) -> None:
        self._vni = vni
        self._warned: set[str] = set()
        self.missing: tuple[str, ...] = ()
        """Parts that this host lacks to reach the remotes, as last logged; empty for none."""

    def start_anew(self) -> None:
        """Write advice again: it may not be the same with another configuration."""
        self._warned.clear()

    def warn_once(self, line: str) -> None:
        """Log a warning, unless it was logged before for this configuration."""
        if line not in self._warned:
            self._warned.add(line)
            log.warning("vni %d: %s", self._vni, line)

    def note_missing(self, missing: tuple[str, ...], devices: tuple[str, ...]) -> bool:
        """Log once what the underlay lacks, and once that it is complete, over which devices.

        Returns: whether it has become complete.
        """
        before, self.missing = self.missing, missing
        if missing and missing != before:
            more = len(missing) - _NAMED_MAX
            rest = f" and {more} more" if more > 0 else ""
            log.warning(
                "vni %d: waiting for the underlay: %s%s",
                *(self._vni, "; ".join(missing[:_NAMED_MAX]), rest),
            )
        is_complete = bool(before) and not missing
        if is_complete:
            over = ", ".join(devices) or "any device"
            log.info("vni %d: the underlay is ready: over %s", self._vni, over)
        return is_complete

    def bridge(self, tap: str, bridge: str | None, before: str, now: str) -> None:
        """Log why the TAP cannot join the bridge if the reason is new, and that it has joined.

        `before` and `now` are the reasons, empty for none.
        """
        if now and now != before:
            log.warning("vni %d: waiting for --bridge %s: %s", self._vni, bridge, now)
        elif before and not now and bridge is not None:
            log.info("vni %d: %s is a port of --bridge %s now", self._vni, tap, bridge)

    def underlay(self, devices: tuple[str, ...], mtu: int) -> None:
        """Log over which devices the remotes are reached, and their MTU in octets."""
        over = ", ".join(devices) or "no device"
        log.debug("vni %d: the routes to the remotes are over %s, MTU %d", self._vni, over, mtu)

    def too_small_for_ipv6(self, host: str, mtu: int) -> None:
        """Log once that the tunnel carries less than IPv6 needs because of the path to a remote."""
        self.warn_once(
            f"the path to {host} carries {mtu} octets in the tunnel, less than the {MTU_MIN_V6} "
            "that IPv6 needs: leave out --df set, and larger ones are fragmented"
        )

    def shared_gateway(self, address: Address) -> None:
        """Log that an anycast gateway address was seen on another host."""
        log.info(
            "vni %d: %s is the gateway of another host, too: guests here use the gateway here, and "
            "its packets reach guests here only",
            *(self._vni, address),
        )

    def remotes(self, segment: Segment) -> None:
        """Log each destination of broadcasts, and where it is configured."""
        if log.isEnabledFor(logging.DEBUG):
            configured = segment.fdb.keys_of(segment.configured)
            for remote in segment.remotes:
                by_option = segment.fdb.keys_of([remote]) <= configured
                origin = "--remote or --group" if by_option else "pyvtep fdb"
                log.debug("vni %d: broadcasts go to %s (%s)", self._vni, remote.host, origin)

    def offloads(self, in_use: Mapping[str, bool], wanted: Collection[str]) -> None:
        """Log which offloads are in use, and why the others are not."""
        if log.isEnabledFor(logging.DEBUG):
            on = ",".join(sorted(name for name, works in in_use.items() if works)) or "none"
            off = ", ".join(
                f"{name} ({'unavailable' if name in wanted else '--offload'})"
                for name, works in sorted(in_use.items())
                if not works
            )
            log.debug("vni %d: offload on: %s; off: %s", self._vni, on, off or "none")
