"""The methods of the control socket for the neighbours of ARP and ND suppression."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from vtep.control import params, schema, views
from vtep.control.batch_runner import run_batch
from vtep.control.jsonrpc import Pages
from vtep.control.method import Method, Segments, pages
from vtep.control.params import Params
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.errors import VtepError
from vtep.forwarding.suppress import Neighbours

log = logging.getLogger("vtep")

_Change = Callable[[Neighbours, Params], None]

_NEIGHBOUR = ("ip", "mac", "vlan", "router", "extern_learn")


class NeighMethods:
    """The methods `neigh.*` of one VTEP."""

    def __init__(self, vtep: Vtep, segments: Segments) -> None:
        self._vtep = vtep
        self._segments = segments
        segment = params.SEGMENT
        self._verbs: dict[str, tuple[_Change, tuple[str, ...]]] = {
            "add": (self._add, _NEIGHBOUR),
            "replace": (self._replace, _NEIGHBOUR),
            "del": (self._del, ("ip", "vlan", "extern_learn")),
        }
        self.table: dict[str, Method] = {
            "neigh.show": Method(self._show, segment),
            **{
                f"neigh.{verb}": Method(partial(self._change, change), (*segment, *takes))
                for verb, (change, takes) in self._verbs.items()
            },
            "neigh.flush": Method(self._flush, (*segment, "permanent", "extern_learn")),
            "neigh.batch": Method(self._batch, (*segment, "changes")),
        }
        """The methods by name."""

    def _show(self, given: Params) -> Pages:
        ports = self._segments.all(given)
        shown = [
            (port, iter(list(port.segment.neighbours)))
            for port in ports
            if port.segment.neighbours is not None
        ]
        if ports and not shown:
            raise self._no_proxy(ports[0])
        return Pages(
            [views.neighbour(port, neighbour, time.monotonic()) for neighbour in page]
            for port, neighbours in shown
            for page in pages(neighbours)
        )

    def _no_proxy(self, port: Port) -> VtepError:
        """Return the error for a segment without --proxy."""
        vni = port.config.vni
        which = f" --vni {vni}" if len(self._vtep.ports) > 1 else ""
        return VtepError(f"vni {vni}: --proxy is off; enable it: pyvtep set --proxy{which}")

    def _neighbours(self, given: Params) -> Neighbours:
        port = self._segments.one(given)
        if port.segment.neighbours is None:
            raise self._no_proxy(port)
        return port.segment.neighbours

    def _change(self, change: _Change, given: Params, *, segment: Params | None = None) -> None:
        """Make one change, in the segment that `segment` names, or else the change itself.

        Side effects: the control plane is notified if a user takes a neighbour that it has given.
        """
        neighbours, ip, vlan = self._neighbours(segment or given), given.ip(), given.vlan()
        was_extern_learn = neighbours.is_extern_learn(ip, vlan)
        change(neighbours, given)
        by_control_plane = segment is not None and given.flag("extern_learn")
        if (
            was_extern_learn
            and not by_control_plane
            and not neighbours.is_extern_learn(ip, vlan)
            and self._vtep.on_flushed is not None
        ):
            self._vtep.on_flushed()

    @staticmethod
    def _add(neighbours: Neighbours, given: Params) -> None:
        neighbours.add(given.ip(), given.mac(), time.monotonic(), **_flags(given))

    @staticmethod
    def _replace(neighbours: Neighbours, given: Params) -> None:
        neighbours.replace(given.ip(), given.mac(), time.monotonic(), **_flags(given))

    @staticmethod
    def _del(neighbours: Neighbours, given: Params) -> None:
        extern_learn = bool(given.flag("extern_learn"))
        neighbours.remove(given.ip(), vlan=given.vlan(), extern_learn=extern_learn)

    def _flush(self, given: Params) -> int:
        permanent, extern_learn = bool(given.flag("permanent")), bool(given.flag("extern_learn"))
        count = self._neighbours(given).flush(permanent=permanent, extern_learn=extern_learn)
        log.info("vni %d: flushed %d neighbours", self._segments.one(given).config.vni, count)
        return count

    async def _batch(self, given: Params) -> schema.BatchResult:
        """Make many changes, each by itself: `{verb, ...}` with the parameters of the verb.

        A change that is refused is reported with its position, and has changed nothing.
        """
        vni = self._segments.one(given).config.vni
        self._neighbours(given)  # Without --proxy, there is nothing to change.
        segment = Params({"vni": vni})
        return await run_batch(
            given,
            {
                verb: (
                    # The table is looked up each time: --proxy may be switched off in between.
                    partial(self._change, change, segment=segment),
                    frozenset((*takes, "verb")),
                )
                for verb, (change, takes) in self._verbs.items()
            },
        )


def _flags(given: Params) -> dict[str, Any]:
    return {
        "vlan": given.vlan(),
        "router": bool(given.flag("router")),
        "extern_learn": bool(given.flag("extern_learn")),
    }
