"""The ways to the remotes of a whole process: who shares them, and who waits for room in them."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from vtep.fdb import Remote
from vtep.underlay import Binding, Outer, Path, pool_slots
from vtep.wire.envelope import Policy


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


_Key: TypeAlias = tuple[Binding, Outer, str, int, bool]


class Pool:
    """The ways to all remotes of a process: VNIs that send alike share them.

    `remotes` is how many there will be, as far as is known: they share the source ports.
    `mtu_changed` is called with a remote and the MTU of the path to it, when that is first known
    and when it changes.
    """

    def __init__(
        self, mtu_changed: Callable[[Remote, int], None] = lambda _remote, _mtu: None
    ) -> None:
        self.remotes = 0
        self.room = Room()
        self._mtu_changed = mtu_changed
        self._paths: dict[_Key, Path] = {}
        self._keys: dict[Path, _Key] = {}
        self._users: Counter[Path] = Counter()

    def take(self, binding: Binding, outer: Outer, remote: Remote, *, gso: bool) -> Path:
        """The way to a remote; each call is to be followed by one of `let_go`."""
        key = (binding, outer, remote.host, remote.port, gso)
        path = self._paths.get(key)
        if path is None:
            slots = pool_slots(max(self.remotes, len(self._paths) + 1), len(outer.srcport))
            path = self._paths[key] = Path(
                binding, outer, remote, slots, self.room.wake, self._mtu_changed, gso=gso
            )
            self._keys[path] = key
        self._users[path] += 1
        return path

    def let_go(self, path: Path) -> None:
        """One that is used by nobody any more is closed."""
        self._users[path] -= 1
        if self._users[path]:
            return
        del self._users[path], self._paths[self._keys.pop(path)]
        path.close()

    def reconnect(self, dev: str | None) -> None:
        """Close all sockets that are bound to a device of this name; others are opened anew."""
        for (binding, *_), path in self._paths.items():
            if binding.dev == dev:
                path.close()

    def look(self) -> None:
        """Ask the kernel for the MTU of every path again: something about the host has changed."""
        for path in self._paths.values():
            path.look()


class Paths(dict[Remote, Path]):
    """The ways to the remotes of one VNI; that to a remote not seen before is made when asked for.

    `bindings` are by IP version; `policy` says what the outer header takes from a frame.
    """

    def __init__(
        self, pool: Pool, bindings: dict[int, Binding], outer: Outer, policy: Policy, *, gso: bool
    ) -> None:
        self.room = pool.room
        self.envelope = policy.reader()
        """The envelope of a frame of at least 14 octets; see `wire.envelope`."""
        self._pool = pool
        self._bindings = bindings
        self._outer = outer
        self._gso = gso

    def __missing__(self, remote: Remote) -> Path:
        path = self[remote] = self._pool.take(
            self._binding(remote), self._outer, remote, gso=self._gso
        )
        return path

    def _binding(self, remote: Remote) -> Binding:
        return self._bindings[6 if ":" in remote.host else 4]

    def release(self, remote: Remote) -> None:
        """Let go of the way to a remote, if there is one."""
        path = self.pop(remote, None)
        if path is not None:
            self._pool.let_go(path)

    def close(self) -> None:
        """Let go of all; they are made anew if there is more to send."""
        for remote in tuple(self):
            self.release(remote)
