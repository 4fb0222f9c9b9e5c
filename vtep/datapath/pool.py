"""The paths to the remotes of a whole process, which VNIs share, and those of one VNI."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import evolve, frozen

from vtep.datapath.backpressure import WritableWaiters
from vtep.forwarding.fdb import Remote
from vtep.io.binding import Binding
from vtep.io.interfaces import Flooder, FloodGroup, Sender, SocketFactory
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS, Path, pool_slots
from vtep.io.replicator import Replicator
from vtep.io.sender_sockets import SenderSockets
from vtep.io.shared_socket import SendingSocket
from vtep.io.udp import UdpSockets
from vtep.tunnel_gso.path import SuperframeSender, TunnelGsoPath
from vtep.tunnel_gso.state import GsoProber, State
from vtep.wire import outer_header, vxlan
from vtep.wire.address import version_of
from vtep.wire.outer_header import InheritPolicy

if TYPE_CHECKING:
    from vtep.tunnel_gso.device import TunnelGsoDevice

FLOOD_MIN: Final = 8
"""Remotes from which on one sendmmsg for all is cheaper than one send for each path."""

_IDLE = State.IDLE
"""A copy, since it is compared for each superframe: `State.IDLE` takes 0.1 us on Python 3.11."""

_FLOODS_MAX = 64
"""Lists of remotes whose `FloodGroup` is kept."""

_REFRESHES_MAX = 1000
"""Paths whose route is refreshed in one call, which takes some 10 ms."""

_ANY_LINK = -1
"""In place of a number of link changes, for a list that does not depend on indices of links."""

_FlooderKey: TypeAlias = tuple[tuple[Binding, ...], OuterHeaderOptions, bool]
_SenderKey: TypeAlias = tuple[Binding, OuterHeaderOptions, str, int, bool]


class Pool:
    """The paths and flooders of a process. VNIs with the same options share them.

    It counts the users of each, and closes it after the last one. `sockets` opens them.
    """

    def __init__(
        self,
        prober: GsoProber[TunnelGsoPath] | None = None,
        sockets: SocketFactory | None = None,
    ) -> None:
        self.remotes = 0
        """The number of remotes that are expected, which share the sockets of the process."""
        self.prober = prober
        """Probes remotes for tunnel GSO; None if tunnel GSO is not used."""
        self.tunnel_gso_device: TunnelGsoDevice | None = None
        """The private TAP device of tunnel GSO; None while it is unavailable."""
        self.writable: Final = WritableWaiters()
        self.senders: Final = SenderSockets(self.writable.wake)
        self._sockets: SocketFactory = sockets if sockets is not None else UdpSockets()
        self._unrefreshed: list[Sender] = []
        self._paths: dict[_SenderKey, Sender] = {}
        self._tunnel_gso_paths: dict[Sender, TunnelGsoPath] = {}
        self._keys: dict[Sender, _SenderKey] = {}
        self._flooders: dict[_FlooderKey, Flooder] = {}
        self._users: Counter[Sender | Flooder] = Counter()

    def acquire_path(
        self, binding: Binding, outer: OuterHeaderOptions, remote: Remote, *, gso: bool
    ) -> Sender:
        """Return the path to a remote. Each call needs one of `release_path`."""
        key = (binding, outer, remote.host, remote.port, gso)
        path = self._paths.get(key)
        if path is None:
            slots = pool_slots(max(self.remotes, len(self._paths) + 1), len(outer.srcport))
            path = self._sockets.open_sender(binding, outer, remote, slots, self.senders, gso=gso)
            self._paths[key] = path
            self._keys[path] = key
        self._users[path] += 1
        return path

    def release_path(self, path: Sender) -> None:
        """Give up the use of a path. It is closed after its last user."""
        if self._release(path):
            del self._paths[self._keys.pop(path)]
            tunnel_gso = self._tunnel_gso_paths.pop(path, None)
            if tunnel_gso is not None and self.prober is not None:
                self.prober.forget(tunnel_gso)
            path.close()

    def acquire_flooder(
        self, bindings: tuple[Binding, ...], outer: OuterHeaderOptions, *, gso: bool
    ) -> Flooder:
        """Return the flooder with these bindings. Each call needs one of `release_flooder`."""
        key = (bindings, outer, gso)
        flooder = self._flooders.get(key)
        if flooder is None:
            flooder = self._sockets.open_flooder(bindings, outer, self.senders, gso=gso)
            self._flooders[key] = flooder
        self._users[flooder] += 1
        return flooder

    def release_flooder(self, flooder: Flooder) -> None:
        """Give up the use of a flooder. It is closed after its last user."""
        if self._release(flooder):
            (key,) = (key for key, each in self._flooders.items() if each is flooder)
            del self._flooders[key]
            flooder.close()

    def _release(self, used: Sender | Flooder) -> bool:
        """Return whether that was the last user."""
        self._users[used] -= 1
        if self._users[used]:
            return False
        del self._users[used]
        return True

    def tunnel_gso_path(self, path: Sender, outer: OuterHeaderOptions) -> TunnelGsoPath:
        """Return the path with tunnel GSO beside a path of UDP sockets.

        Raises: RuntimeError if tunnel GSO is unavailable, or the path has no UDP sockets.
        """
        device, prober = self.tunnel_gso_device, self.prober
        if device is None or prober is None or not isinstance(path, Path):
            raise RuntimeError("tunnel GSO is unavailable: no device, no prober or no UDP socket")
        found = self._tunnel_gso_paths.get(path)
        if found is None or found.device is not device:
            if found is not None:
                prober.forget(found)
            found = self._tunnel_gso_paths[path] = TunnelGsoPath(path, outer, device, prober)
        return found

    def reconnect(self, dev: str | None) -> None:
        """Close all sockets that are bound to a device of this name. The next send reopens them."""
        for (binding, *_), path in self._paths.items():
            if binding.dev == dev:
                path.close()
        for (bindings, *_), flooder in self._flooders.items():
            if any(binding.dev == dev for binding in bindings):
                flooder.close()

    def refresh_routes(self, budget: int | None = None) -> None:
        """Look up the routes of all paths again, or of `budget` of them in turn.

        If there are very many paths, the remaining ones are looked up by the next calls.
        """
        if budget is None or not self._unrefreshed:
            self._unrefreshed = list(self._paths.values())
        for _ in range(min(budget or _REFRESHES_MAX, len(self._unrefreshed))):
            path = self._unrefreshed.pop()
            if path in self._users:
                path.refresh_route()


@frozen
class Flood:
    """A split list of remotes: a group to send to at once, and others to send to by paths."""

    group: FloodGroup
    others: tuple[Remote, ...]


class Paths(dict[Remote, Sender]):
    """The paths to the remotes of one VNI. A missing one is acquired from the pool.

    Args:
        pool: the paths of the process.
        bindings: by IP version.
        outer: outer header fields of all datagrams.
        policy: outer header fields that inherit from a frame.
        mtu_changed: called with the path MTU to a remote when it becomes known or changes, and with
            None when the path is released.
        gso: whether a send may have several datagrams.
        tunnel_gso: whether tunnel GSO is available.
        port: the UDP port to which remotes send, which is where echo replies are to go.
    """

    def __init__(
        self,
        pool: Pool,
        bindings: dict[int, Binding],
        outer: OuterHeaderOptions,
        policy: InheritPolicy,
        mtu_changed: Callable[[Remote, int | None], None],
        *,
        gso: bool,
        tunnel_gso: bool = False,
        port: int = vxlan.PORT,
    ) -> None:
        self.writable: Final = pool.writable
        self.tunnel_gso: Final = tunnel_gso
        """True if `tunnel_gso_path` may be called."""
        self.policy: Final = policy
        """The rules by which outer header fields inherit from a frame."""
        self.outer_fields: Final = policy.make_reader()
        """Maps a frame of at least 14 octets to its packed outer header fields; see
        `vtep.wire.outer_header`."""
        self._pool = pool
        self._bindings = bindings
        self.options: Final = outer
        """The outer header fields of all datagrams, unless a frame overrides them."""
        self._mtu_changed = mtu_changed
        self._gso = gso
        self._port = port
        self._tunnel_gso_paths: dict[Remote, TunnelGsoPath] = {}
        self._flooder: Flooder | None = None
        # By the identity of a list: the list, the link changes before, and how to flood to it.
        self._floods: dict[int, tuple[Sequence[Remote], int, Flood | None]] = {}

    def __missing__(self, remote: Remote) -> Sender:
        path = self[remote] = self._pool.acquire_path(
            self.binding(remote), self.options, remote, gso=self._gso
        )
        path.watchers.append(self._mtu_changed)
        if path.mtu:
            self._mtu_changed(remote, path.mtu)
        return path

    def tunnel_gso_path(self, remote: Remote) -> SuperframeSender:
        """Return the path with tunnel GSO to a remote.

        Side effect: the first call starts capability probing.
        """
        path = self._tunnel_gso_paths.get(remote)
        if path is None:
            path = self._pool.tunnel_gso_path(self[remote], self.options)
            self._tunnel_gso_paths[remote] = path
        if path.gso.state is _IDLE:
            path.request(self._port)
        return path

    def binding(self, remote: Remote) -> Binding:
        """Return the binding of the sockets that send to a remote."""
        binding = self._bindings[version_of(remote.host)]
        return binding if remote.via is None else evolve(binding, dev=remote.via)

    def flood(self, remotes: Sequence[Remote]) -> Flood | None:
        """Split a list of remotes for flooding. Returns: None to send to all by their paths.

        Results are kept by the identity of the list, which the segment keeps while it is the same.
        """
        changes = self._pool.senders.link_changes
        found = self._floods.get(id(remotes))
        # A prepared group holds the link indices of link-local remotes, which may change.
        if found is not None and found[0] is remotes and found[1] in (_ANY_LINK, changes):
            return found[2]
        flood = self._prepare(remotes)
        if len(self._floods) >= _FLOODS_MAX:
            self._floods.clear()
        if not any("%" in remote.host for remote in remotes):
            changes = _ANY_LINK
        self._floods[id(remotes)] = remotes, changes, flood
        if flood is not None:
            # After backpressure, the sender continues with the remotes of the group alone.
            group = flood.group.remotes
            self._floods[id(group)] = group, changes, evolve(flood, others=())
        return flood

    def flood_socket(self, remote: Remote, flow: int) -> SendingSocket | None:
        """Return the socket that floods a flow to a remote; None if there is none.

        Raises: OSError.
        """
        flooder = self._flooder
        if not isinstance(flooder, Replicator):
            return None
        df = flow >> FLOW_BITS & outer_header.DF
        return flooder.socket_for(self.binding(remote).family, flow, df)

    def _prepare(self, remotes: Sequence[Remote]) -> Flood | None:
        others = tuple(remote for remote in remotes if (remote.via, remote.vni) != (None, None))
        plain = [remote for remote in remotes if remote not in others]
        if len(plain) < FLOOD_MIN:
            return None
        if self._flooder is None:
            bindings = tuple(self._bindings.values())
            self._flooder = self._pool.acquire_flooder(bindings, self.options, gso=self._gso)
        try:
            group = self._flooder.prepare(plain)
        except OSError:  # The device of a link-local remote is absent.
            return None
        return Flood(group, others)

    def mtus(self) -> dict[str, int]:
        """Return the MTU of the path to each host that something was sent to, in octets."""
        mtus: dict[str, int] = {}
        for remote, path in self.items():
            if path.mtu:
                mtus[remote.host] = min(path.mtu, mtus.get(remote.host, path.mtu))
        return mtus

    def release(self, remote: Remote) -> None:
        """Release the path to a remote, if there is one."""
        self._tunnel_gso_paths.pop(remote, None)
        path = self.pop(remote, None)
        if path is not None:
            path.watchers.remove(self._mtu_changed)
            # After a change of options, the paths that replace these have the same callback.
            if self._mtu_changed not in path.watchers:
                self._mtu_changed(remote, None)
            self._pool.release_path(path)

    def close(self) -> None:
        """Release all paths. The next send acquires them again."""
        for remote in tuple(self):
            self.release(remote)
        self._floods.clear()
        if self._flooder is not None:
            self._pool.release_flooder(self._flooder)
            self._flooder = None
