"""The commands of a client of the control socket, by their groups, as in `pyvtep fdb`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from vtep.control import batches
from vtep.control.schema import (
    BatchResult,
    FdbChange,
    FdbEntry,
    FdbSample,
    LoopEntry,
    NeighbourChange,
    NeighbourEntry,
    RemoteEntry,
    SegmentInfo,
    StormEntry,
)

Call: TypeAlias = Callable[..., Any]
"""Calls a method by name, with its parameters as keywords; None stands for an absent one."""


class FdbCommands:
    """The commands `pyvtep fdb`, for the forwarding database, with the words of `bridge fdb`."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def show(
        self, *, vni: int | None = None, dev: str | None = None, **wanted: Any
    ) -> list[FdbEntry]:
        """Return entries; the filter is that of `flush`."""
        result: list[FdbEntry] = self._call("fdb.show", vni=vni, dev=dev, **wanted)
        return result

    def get(self, mac: str, *, vni: int | None = None, dev: str | None = None) -> FdbEntry:
        """Return the entry of a MAC."""
        result: FdbEntry = self._call("fdb.get", mac=mac, vni=vni, dev=dev)
        return result

    def sample(
        self,
        macs: Sequence[str] = (),
        page: int | None = None,
        *,
        vni: int | None = None,
        dev: str | None = None,
    ) -> FdbSample:
        """Return the entries of up to 100 MACs and, with `page`, some 500 more from that page on.

        Its cost does not depend on the size of the FDB. Pages are numbered from 0.
        """
        result: FdbSample = self._call("fdb.sample", macs=list(macs), page=page, vni=vni, dev=dev)
        return result

    def add(self, mac: str, dst: str, **entry: Any) -> None:
        """Add an entry for a MAC that has none.

        Keywords: `port`, `dst_vni`, `via`; `state`, which is "permanent", "static" or "dynamic";
        `extern_learn` and `sticky`, which are True or False; with `extern_learn`, `sequence`, a
        mobility sequence number; the segment, `vni` or `dev`.
        """
        self._call("fdb.add", mac=mac, dst=dst, **entry)

    def append(self, mac: str, dst: str, **entry: Any) -> None:
        """Add a destination to the entry of a MAC; the keywords are those of `add`."""
        self._call("fdb.append", mac=mac, dst=dst, **entry)

    def replace(self, mac: str, dst: str, **entry: Any) -> None:
        """Replace all destinations of a MAC by this one; the keywords are those of `add`."""
        self._call("fdb.replace", mac=mac, dst=dst, **entry)

    def delete(self, mac: str, dst: str | None = None, **destination: Any) -> None:
        """Delete a destination of a MAC; without `dst`, delete its entry.

        With `extern_learn`, withdraw only what a control plane has given (True), or this host
        (False).
        """
        self._call("fdb.del", mac=mac, dst=dst, **destination)

    def batch(
        self, changes: Iterable[FdbChange], *, vni: int | None = None, dev: str | None = None
    ) -> BatchResult:
        """Make any number of changes, each of them by itself.

        Raises: as any call; those of `changes` that are refused are in the result instead.
        """
        return _batch(self._call, "fdb.batch", changes, vni=vni, dev=dev)

    def flush(self, *, vni: int | None = None, dev: str | None = None, **wanted: Any) -> int:
        """Delete every destination that matches all keywords. Returns: their number.

        Keywords: `dst`, `port`, `dst_vni`, `via`; `permanent`, `static`, `dynamic`, `extern_learn`,
        `sticky` and `held`, of which False stands for the `no...` of `bridge fdb flush`.
        """
        result: int = self._call("fdb.flush", vni=vni, dev=dev, **wanted)
        return result


class RemoteCommands:
    """The commands `pyvtep remote`, for the VTEPs that flooded frames are sent to."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def show(self, *, vni: int | None = None, dev: str | None = None) -> list[RemoteEntry]:
        """Return the destinations of the default entry."""
        result: list[RemoteEntry] = self._call("remote.show", vni=vni, dev=dev)
        return result

    def add(self, remote: str, *, vni: int | None = None, dev: str | None = None) -> None:
        """Add a remote to a segment, as the option --remote does."""
        self._call("remote.add", remote=remote, vni=vni, dev=dev)

    def delete(self, remote: str, *, vni: int | None = None, dev: str | None = None) -> None:
        """Remove a remote from a segment, with the MACs that were learned from it."""
        self._call("remote.del", remote=remote, vni=vni, dev=dev)


class VniCommands:
    """The commands `pyvtep vni`, for the segments of the process."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def show(self, *, vni: int | None = None, dev: str | None = None) -> list[SegmentInfo]:
        """Return every segment, or one."""
        result: list[SegmentInfo] = self._call("vni.show", vni=vni, dev=dev)
        return result

    def add(self, vni: int, **options: Any) -> SegmentInfo:
        """Add a segment; the keywords are those of `Config`."""
        result: SegmentInfo = self._call("vni.add", vni=vni, options=options)
        return result

    def delete(self, vni: int) -> None:
        """Delete a segment."""
        self._call("vni.del", vni=vni)


class NeighCommands:
    """The commands `pyvtep neigh`, for ARP and ND suppression."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def show(self, *, vni: int | None = None, dev: str | None = None) -> list[NeighbourEntry]:
        """Return every neighbour."""
        result: list[NeighbourEntry] = self._call("neigh.show", vni=vni, dev=dev)
        return result

    def add(self, ip: str, mac: str, **neighbour: Any) -> None:
        """Add a neighbour for an address that has none: requests are answered with its MAC.

        Keywords: `vlan`, `router`, `extern_learn`; the segment, `vni` or `dev`.
        """
        self._call("neigh.add", ip=ip, mac=mac, **neighbour)

    def replace(self, ip: str, mac: str, **neighbour: Any) -> None:
        """Add a neighbour, or change its MAC; the keywords are those of `add`."""
        self._call("neigh.replace", ip=ip, mac=mac, **neighbour)

    def delete(self, ip: str, **neighbour: Any) -> None:
        """Delete a neighbour; with `extern_learn`, only one that a control plane has added."""
        self._call("neigh.del", ip=ip, **neighbour)

    def flush(
        self,
        *,
        permanent: bool = False,
        extern_learn: bool = False,
        vni: int | None = None,
        dev: str | None = None,
    ) -> int:
        """Delete dynamic neighbours, and with `permanent` configured ones as well.

        With `extern_learn`, delete those of a control plane instead. Returns: their number.
        """
        flags = {"permanent": permanent, "extern_learn": extern_learn or None}
        result: int = self._call("neigh.flush", **flags, vni=vni, dev=dev)
        return result

    def batch(
        self, changes: Iterable[NeighbourChange], *, vni: int | None = None, dev: str | None = None
    ) -> BatchResult:
        """Make any number of changes, each of them by itself; see `FdbCommands.batch`."""
        return _batch(self._call, "neigh.batch", changes, vni=vni, dev=dev)


class LoopCommands:
    """The command `pyvtep loop`, for the remotes through which a loop leads."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def show(self, *, vni: int | None = None, dev: str | None = None) -> list[LoopEntry]:
        """Return the remotes with which flooding is stopped."""
        result: list[LoopEntry] = self._call("loop.show", vni=vni, dev=dev)
        return result


class StormCommands:
    """The command `pyvtep storm`, for storm control."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def show(self, *, vni: int | None = None, dev: str | None = None) -> list[StormEntry]:
        """Return the limits, and the storms."""
        result: list[StormEntry] = self._call("storm.show", vni=vni, dev=dev)
        return result


def _batch(
    call: Call,
    method: str,
    changes: Iterable[FdbChange] | Iterable[NeighbourChange],
    **segment: Any,
) -> BatchResult:
    """Make changes by as many requests as they need."""
    total: BatchResult = {"done": 0, "errors": []}
    for batch in batches.split(changes):
        before = total["done"] + len(total["errors"])
        result: BatchResult = call(method, changes=batch, **segment)
        total["done"] += result["done"]
        for error in result["errors"]:
            total["errors"].append({**error, "index": before + error["index"]})
    return total
