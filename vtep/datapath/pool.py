"""The ways to the remotes of a whole process: who shares them, and who waits for room in them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from attrs import evolve, frozen

from vtep.forwarding.fdb import Remote
from vtep.io.path import Path, pool_slots
from vtep.io.replicator import Recipients, Replicator
from vtep.io.sender_sockets import SenderSockets
from vtep.io.sockets import Binding, OuterHeaderOptions
from vtep.tunnel_gso.path import TunnelGsoPath
from vtep.tunnel_gso.state import GsoProber, State
from vtep.wire import vxlan
from vtep.wire.outer_header import InheritPolicy

if TYPE_CHECKING:
    from vtep.tunnel_gso.device import TunnelGsoDevice


class Room:
    """Who waits until a socket takes more.

    Several may wait for one, where VNIs share the way to a remote. All are called once, in the
    loop's turn; also if the socket is closed, since then there is another one to try.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[Callable[[], None]]] = {}

    def wait(self, fd: int, resume: Callable[[], None]) -> None:
        """Have `resume` called once when the socket of the descriptor is writable."""
        waiting = self._waiting.setdefault(fd, [])
        if not waiting:
            asyncio.get_running_loop().add_writer(fd, self.wake, fd)
        waiting.append(resume)

    def wake(self, fd: int) -> None:
        """Have all who wait for this one try again; it may be closed then."""
        waiting = self._waiting.pop(fd, None)
        if waiting is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_writer(fd)
        for resume in waiting:
            # Not now: whoever closes a socket is in the middle of a send.
            loop.call_soon(resume)


FLOOD_MIN = 8
"""From how many remotes on one system call for all is cheaper than one for each of their paths."""

_IDLE = State.IDLE
"""Kept since it is compared for every superframe: `State.IDLE` takes 0.1 us on Python 3.11."""

_FLOODS_MAX = 64
"""Of how many lists of remotes it is remembered how to send to all of them."""

_LOOKS_MAX = 1000
"""Paths whose MTU is asked for at a time, which takes some 10 ms."""

_ANY_LINK = -1
"""For a list that does not depend on the indices of links."""

_SenderKey: TypeAlias = tuple[tuple[Binding, ...], OuterHeaderOptions, bool]
_Key: TypeAlias = tuple[Binding, OuterHeaderOptions, str, int, bool]


class Pool:
    """The ways to all remotes of a process: VNIs that send alike share them.

    `remotes` is how many there will be, as far as is known: they share the source ports. Tunnel GSO
    needs a `prober` and a `tunnel_gso_device`.
    """

    def __init__(self, prober: GsoProber[TunnelGsoPath] | None = None) -> None:
        self.remotes = 0
        self.prober = prober
        self.tunnel_gso_device: TunnelGsoDevice | None = None
        self.room = Room()
        self.senders = SenderSockets(self.room.wake)
        self._unseen: list[Path] = []
        self._paths: dict[_Key, Path] = {}
        self._tunnel_gso_paths: dict[Path, TunnelGsoPath] = {}
        self._keys: dict[Path, _Key] = {}
        self._replicators: dict[_SenderKey, Replicator] = {}
        self._users: Counter[Path | Replicator] = Counter()

    def take(
        self, binding: Binding, outer: OuterHeaderOptions, remote: Remote, *, gso: bool
    ) -> Path:
        """The way to a remote; each call is to be followed by one of `let_go`."""
        key = (binding, outer, remote.host, remote.port, gso)
        path = self._paths.get(key)
        if path is None:
            slots = pool_slots(max(self.remotes, len(self._paths) + 1), len(outer.srcport))
            path = self._paths[key] = Path(binding, outer, remote, slots, self.senders, gso=gso)
            self._keys[path] = key
        self._users[path] += 1
        return path

    def tunnel_gso_path(self, path: Path, outer: OuterHeaderOptions) -> TunnelGsoPath:
        """Return the path with tunnel GSO to the remote of a path. Tunnel GSO must be available."""
        device, prober = self.tunnel_gso_device, self.prober
        if device is None or prober is None:
            raise RuntimeError("tunnel GSO is not available: there is no device, or no prober")
        found = self._tunnel_gso_paths.get(path)
        if found is None or found.device is not device:
            if found is not None:
                prober.forget(found)
            found = self._tunnel_gso_paths[path] = TunnelGsoPath(path, outer, device, prober)
        return found

    def replicator(
        self, bindings: tuple[Binding, ...], outer: OuterHeaderOptions, *, gso: bool
    ) -> Replicator:
        """What sends to many remotes at once; each call is to be followed by one of `let_go`."""
        key = (bindings, outer, gso)
        replicator = self._replicators.get(key)
        if replicator is None:
            replicator = Replicator(bindings, outer, self.senders, gso=gso)
            self._replicators[key] = replicator
        self._users[replicator] += 1
        return replicator

    def let_go(self, way: Path | Replicator) -> None:
        """One that is used by nobody any more is closed."""
        self._users[way] -= 1
        if self._users[way]:
            return
        del self._users[way]
        if isinstance(way, Path):
            del self._paths[self._keys.pop(way)]
            tunnel_gso = self._tunnel_gso_paths.pop(way, None)
            if tunnel_gso is not None and self.prober is not None:
                self.prober.forget(tunnel_gso)
        else:
            (key,) = (key for key, each in self._replicators.items() if each is way)
            del self._replicators[key]
        way.close()

    def reconnect(self, dev: str | None) -> None:
        """Close all sockets that are bound to a device of this name; others are opened anew."""
        for (binding, *_), path in self._paths.items():
            if binding.dev == dev:
                path.close()
        for (bindings, *_), replicator in self._replicators.items():
            if any(binding.dev == dev for binding in bindings):
                replicator.close()

    def look(self, budget: int | None = None) -> None:
        """Ask the kernel for the MTU of every path again, or of so many of them in turn.

        If there are very many, the rest has its turn with the next calls.
        """
        if budget is None or not self._unseen:
            self._unseen = list(self._paths.values())
        for _ in range(min(budget or _LOOKS_MAX, len(self._unseen))):
            path = self._unseen.pop()
            if path in self._users:
                path.look()


@frozen
class Flood:
    """How to send to many remotes: to most of them at once, and to the others by their paths."""

    replicator: Replicator
    recipients: Recipients
    others: tuple[Remote, ...]


class Paths(dict[Remote, Path]):
    """The ways to the remotes of one VNI; that to a remote not seen before is made when asked for.

    `bindings` are by IP version; `policy` says what the outer header takes from a frame.
    `mtu_changed` is told of the MTU of the path to a remote when it is first known and when it
    changes, and None when the path is not used any more. `port` is where we listen. `tunnel_gso`
    is whether tunnel GSO is available.
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
        self.room = pool.room
        self.tunnel_gso = tunnel_gso
        """Whether `tunnel_gso_path` may be called."""
        self.envelope = policy.make_reader()
        """The envelope of a frame of at least 14 octets; see `outer_header`."""
        self._pool = pool
        self._bindings = bindings
        self._outer = outer
        self._mtu_changed = mtu_changed
        self._gso = gso
        self._port = port
        self._tunnel_gso_paths: dict[Remote, TunnelGsoPath] = {}
        self._replicator: Replicator | None = None
        self._floods: dict[int, tuple[Sequence[Remote], int, Flood | None]] = {}

    def __missing__(self, remote: Remote) -> Path:
        path = self[remote] = self._pool.take(
            self._binding(remote), self._outer, remote, gso=self._gso
        )
        path.watchers.append(self._mtu_changed)
        if path.mtu:
            self._mtu_changed(remote, path.mtu)
        return path

    def tunnel_gso_path(self, remote: Remote) -> TunnelGsoPath:
        """Return the path with tunnel GSO to a remote.

        Side effect: the first call starts capability probing.
        """
        path = self._tunnel_gso_paths.get(remote)
        if path is None:
            path = self._pool.tunnel_gso_path(self[remote], self._outer)
            self._tunnel_gso_paths[remote] = path
        if path.gso.state is _IDLE:
            path.request(self._port)
        return path

    def _binding(self, remote: Remote) -> Binding:
        binding = self._bindings[6 if ":" in remote.host else 4]
        return binding if remote.via is None else evolve(binding, dev=remote.via)

    def flood(self, remotes: Sequence[Remote]) -> Flood | None:
        """How to send to all of these, who are many, or None if it has to be by their paths."""
        changes = self._pool.senders.link_changes
        found = self._floods.get(id(remotes))
        # The index of a link may be another one after a change, of which link-local ones have it.
        if found is not None and found[0] is remotes and found[1] in (_ANY_LINK, changes):
            return found[2]
        flood = self._prepare(remotes)
        if len(self._floods) >= _FLOODS_MAX:
            self._floods.clear()
        if not any("%" in remote.host for remote in remotes):
            changes = _ANY_LINK
        self._floods[id(remotes)] = remotes, changes, flood
        if flood is not None:
            # Who goes on with what had no room asks for those who are served at once.
            served = flood.recipients.remotes
            self._floods[id(served)] = served, changes, evolve(flood, others=())
        return flood

    def _prepare(self, remotes: Sequence[Remote]) -> Flood | None:
        others = tuple(remote for remote in remotes if (remote.via, remote.vni) != (None, None))
        plain = [remote for remote in remotes if remote not in others]
        if len(plain) < FLOOD_MIN:
            return None
        if self._replicator is None:
            bindings = tuple(self._bindings.values())
            self._replicator = self._pool.replicator(bindings, self._outer, gso=self._gso)
        try:
            recipients = self._replicator.recipients(plain)
        except OSError:  # One has a device that is not here.
            return None
        return Flood(self._replicator, recipients, others)

    def release(self, remote: Remote) -> None:
        """Let go of the way to a remote, if there is one."""
        self._tunnel_gso_paths.pop(remote, None)
        path = self.pop(remote, None)
        if path is not None:
            path.watchers.remove(self._mtu_changed)
            if self._mtu_changed not in path.watchers:  # As where others have taken over.
                self._mtu_changed(remote, None)
            self._pool.let_go(path)

    def close(self) -> None:
        """Let go of all; they are made anew if there is more to send."""
        for remote in tuple(self):
            self.release(remote)
        self._floods.clear()
        if self._replicator is not None:
            self._pool.let_go(self._replicator)
            self._replicator = None
