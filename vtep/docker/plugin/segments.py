"""The VNIs of the driver's networks, in the daemons of this host."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vtep.control import client as control
from vtep.control.client import Client
from vtep.control.schema import SegmentInfo
from vtep.docker.host_daemon import join, running
from vtep.docker.plugin.network import PluginNetwork, spell_options
from vtep.errors import ConfigError, VtepError

log = logging.getLogger("vtep")

_GRACE_S = 3.0
"""Time for a service manager to start a daemon that has ended. Two daemons would contend for one
UDP port."""


class HostSegments:
    """The VNIs of networks in the daemons of this network namespace.

    It owns a connection to each daemon that has one of them, which is a thread's. `on_change` is
    called in that thread when the daemon has ended, or has changed one of its VNIs. New VNIs are
    added to the daemon at `socket` or, without it, to the one that `host_daemon.join` finds.
    """

    def __init__(self, on_change: Callable[[], object], socket: Path | None = None) -> None:
        self._socket = socket
        self._on_change = on_change
        self._watched: dict[Path, set[int]] = {}
        self._lost_at = -_GRACE_S
        """Time on the monotonic clock when a daemon with VNIs of ours ended."""
        self._lock = threading.Lock()

    def owners(self) -> dict[int, Path]:
        """Return the control socket of the daemon that has a VNI, for each VNI here."""
        return {
            segment.vni: candidate.path
            for candidate in control.candidates(ask=True)
            if candidate.here
            for segment in candidate.segments or ()
        }

    def check_free(self, vni: int) -> None:
        """Raise ConfigError if a daemon here has the VNI of a network that is to be made."""
        path = self.owners().get(vni)
        if path is not None:
            with Client(path) as daemon:
                raise _in_use(daemon, *daemon.vni.show(vni=vni))

    def ensure(self, network: PluginNetwork, owner: Path | None) -> int:
        """Add the VNI of a network, unless its owner has it. Returns: the MTU of its tunnel.

        Starts a daemon if there is none.

        Raises: VtepError if the VNI is that of something else, or cannot be added.
        """
        if owner is None and time.monotonic() < self._lost_at + _GRACE_S and not running():
            raise VtepError("its pyvtep has ended; waiting for its service manager to start one")
        port = network.config.dstport
        daemon = join(dstport=port, socket=self._socket) if owner is None else Client(owner)
        with daemon:
            if owner is not None:
                mtu = self._present_mtu(daemon, network)
            else:
                try:
                    added = daemon.call(
                        "vni.add",
                        vni=network.vni,
                        options={
                            name: value for name, value in network.segment.items() if name != "vni"
                        },
                    )
                except ConfigError as error:
                    raise ConfigError(spell_options(str(error))) from error
                mtu = added["mtu"]
                log.info(
                    "network %.12s: vni %d is on its bridge %s, mtu %d",
                    *(network.id, network.vni, network.bridge, mtu),
                )
            self._watch(daemon.path, network.vni)
        return int(mtu)

    def _present_mtu(self, daemon: Client, network: PluginNetwork) -> int:
        (segment,) = daemon.vni.show(vni=network.vni)
        if segment["options"].get("bridge") != network.bridge:
            raise _in_use(daemon, segment)
        return segment["mtu"]

    def remove(self, network: PluginNetwork) -> None:
        """Remove the VNI of a network, if a daemon has it. Raises: VtepError."""
        path = self.owners().get(network.vni)
        if path is None:
            return
        with Client(path) as daemon:
            try:
                self._present_mtu(daemon, network)
            except ConfigError:
                return
            daemon.vni.delete(network.vni)

    def _watch(self, path: Path, vni: int) -> None:
        """Watch a daemon for as long as it has a VNI of ours."""
        with self._lock:
            is_watched = path in self._watched
            self._watched.setdefault(path, set()).add(vni)
        if is_watched:
            return
        threading.Thread(target=self._follow, args=(path,), daemon=True).start()

    def _follow(self, path: Path) -> None:
        with suppress(VtepError, OSError), Client(path) as daemon:
            for event in daemon.monitor():
                if event["object"] == "vni" and event["event"] == "deleted":
                    # By us, by an operator, or by a reload of a file that does not have it.
                    with self._lock:
                        vnis = self._watched[path]
                        vnis.discard(event["vni"])
                        if not vnis:
                            # One that was started for us ends when it has neither VNIs nor clients.
                            break
                    self._on_change()
                elif event["object"] == "mtu":
                    self._on_change()
        with self._lock:
            if self._watched.pop(path, None):
                self._lost_at = time.monotonic()
        self._on_change()


def _in_use(daemon: Client, segment: SegmentInfo) -> ConfigError:
    bridge, attached = segment["options"].get("bridge"), segment["options"].get("docker-network")
    where = f"on the bridge {bridge}" if bridge else "on no bridge"
    end = f"vni del {segment['vni']}"
    if attached:
        where, end = f"for the attached network {attached}", f"docker detach {attached}"
    return ConfigError(
        f"-o vni={segment['vni']}: {daemon.path} has this VNI, as {segment['dev']} {where}; "
        f"choose another one, or remove that: pyvtep {end}"
    )
