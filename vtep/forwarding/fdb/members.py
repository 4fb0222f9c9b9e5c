"""The remotes that the entries of an FDB use, and the hosts that belong to its segment."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from vtep.forwarding.fdb.entry import Filter
from vtep.forwarding.fdb.remote import Remote

RemoteKey: TypeAlias = tuple[str, int, int, str | None]
"""Host, port, VNI and device of a destination. Equal keys mean the same destination."""


class Members:
    """The destinations of all entries of one FDB.

    Remotes are interned: among equal ones, the first object is used as long as an entry has it. So
    the data path can compare remotes by identity and use them as keys.

    A host is a *member* of the segment while it is a destination of an entry that does not age, for
    instance the default entry. The segment accepts datagrams from its members.

    `vni` and `port` are those of a destination that does not name its own.
    """

    def __init__(self, vni: int, port: int) -> None:
        self.vni = vni
        self.port = port
        self.hosts: dict[str, Remote] = {}
        """By member, the remote that MACs received from there are learned for."""
        self.on_added: Callable[[str], None] | None = None
        """Called with each host that has become a member."""
        self.on_removed: Callable[[str], None] | None = None
        """Called with each host that is no longer a member."""
        self.on_changed: Callable[[], None] | None = None
        """Called once after a change of `hosts`, before the two above."""
        self.on_remote_unused: Callable[[Remote], None] | None = None
        """Called with each remote that no entry uses any more, to release its resources."""
        self._remotes: dict[RemoteKey, Remote] = {}
        self._use_count: dict[Remote, int] = {}
        # For each host, the remotes of lasting entries, that is, of those that do not age, and the
        # number of such entries for each remote.
        self._lasting: dict[str, dict[Remote, int]] = {}
        self._ageing_by_host: dict[str, int] = {}
        # Hosts and remotes that a change has touched, until `finish_change` handles them.
        self._touched: list[str] = []
        self._released: list[Remote] = []

    # --- queries ------------------------------------------------------------------------------

    def key(self, remote: Remote) -> RemoteKey:
        """Return what identifies a destination."""
        return remote.host, remote.port, self._vni_of(remote), remote.via

    def matches(self, remote: Remote, wanted: Filter) -> bool:
        """Return True if the fields of a filter about destinations match."""
        return (
            wanted.dst in (None, remote.host)
            and wanted.port in (None, remote.port)
            and wanted.vni in (None, self._vni_of(remote))
            and wanted.via in (None, remote.via)
        )

    def use_count(self, remote: Remote) -> int:
        """Return how many entries have this object as a destination."""
        return self._use_count.get(remote, 0)

    def ageing_count(self, host: str) -> int:
        """Return how many entries that age have a host as a destination."""
        return self._ageing_by_host.get(host, 0)

    def entry_count(self, host: str) -> int:
        """Return how often a host is a destination of an entry."""
        lasting = self._lasting.get(host)
        return self.ageing_count(host) + (sum(lasting.values()) if lasting is not None else 0)

    def _vni_of(self, remote: Remote) -> int:
        return self.vni if remote.vni is None else remote.vni

    # --- changes ------------------------------------------------------------------------------

    def take(self, remote: Remote, *, ages: bool) -> Remote:
        """Count one more entry that uses a remote; `ages` is that of the entry's kind.

        Returns: the object that all entries use for it.
        """
        count = self._use_count.get(remote)
        if count is None:
            remote = self._remotes.setdefault(self.key(remote), remote)
            count = self._use_count.get(remote, 0)
        self._use_count[remote] = count + 1
        host = remote.host
        if ages:
            self._ageing_by_host[host] = self._ageing_by_host.get(host, 0) + 1
        else:
            lasting = self._lasting.setdefault(host, {})
            lasting[remote] = lasting.get(remote, 0) + 1
            self._touched.append(host)
        return remote

    def release(self, remotes: Iterable[Remote], *, ages: bool) -> None:
        """Count one entry less that uses each of these remotes."""
        for remote in remotes:
            count = self._use_count[remote] - 1
            if count:
                self._use_count[remote] = count
            else:
                del self._use_count[remote], self._remotes[self.key(remote)]
                self._released.append(remote)
            if ages:
                self._ageing_by_host[remote.host] -= 1
                if not self._ageing_by_host[remote.host]:
                    del self._ageing_by_host[remote.host]
            else:
                lasting = self._lasting[remote.host]
                lasting[remote] -= 1
                if not lasting[remote]:
                    del lasting[remote]
                    if not lasting:
                        del self._lasting[remote.host]
                self._touched.append(remote.host)

    def set_port(self, port: int) -> None:
        """Change the port of destinations that name none. Call `finish_change` afterwards."""
        self.port = port
        self._touched += self._lasting

    def finish_change(self, flooded_to: Iterable[Remote]) -> None:
        """Bring `hosts` up to date after a complete change, and call back.

        `flooded_to` are the destinations of the default entry.
        """
        added, removed = [], []
        while self._touched:
            host = self._touched.pop()
            if host in self._lasting:
                if host not in self.hosts:
                    added.append(host)
                self.hosts[host] = self._source(host, flooded_to)
            elif self.hosts.pop(host, None) is not None:
                removed.append(host)
        if self.on_changed is not None and (added or removed):
            self.on_changed()
        if self.on_added is not None:
            for host in added:
                self.on_added(host)
        if self.on_removed is not None:
            for host in removed:
                self.on_removed(host)
        while self._released:
            remote = self._released.pop()
            # A callback may have put it into use again.
            if self.on_remote_unused is not None and remote not in self._use_count:
                self.on_remote_unused(remote)

    def _source(self, host: str, flooded_to: Iterable[Remote]) -> Remote:
        """Return the remote for MACs that are received from a member.

        It is the one with the default port, VNI and device, as in the kernel driver. If no lasting
        entry has that one, it is the host's destination in the default entry, if it has one there.
        """
        plain = self._remotes.get((host, self.port, self.vni, None))
        if plain in self._lasting[host]:
            return plain
        known = next((remote for remote in flooded_to if remote.host == host), None)
        return known or plain or Remote(host, self.port)
