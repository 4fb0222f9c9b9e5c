"""One method of the control socket, and the segments that its parameters name."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

import attrs

from vtep.control.params import Params
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.errors import ConfigError, VtepError

_PAGE = 50
"""Segments or neighbours that are converted at a time: about a millisecond, for which frames
wait."""

_T = TypeVar("_T")


@attrs.frozen
class Method:
    """A method: a function, and the names of its parameters."""

    function: Callable[[Params], Any]
    takes: tuple[str, ...] = ()


class Segments:
    """The segments of a VTEP by the parameters `vni` and `dev`."""

    def __init__(self, vtep: Vtep) -> None:
        self._vtep = vtep

    def all(self, given: Params) -> list[Port]:
        """Return the segment that is named, or all. Raises: VtepError if there is no such one."""
        vni, dev = given.vni(), given.text("dev")
        if vni is None and dev is None:
            return list(self._vtep.ports.values())
        if vni is None and (sharing := self._on_device(dev)):  # One for each VLAN of the TAP.
            return sharing
        return [self.one(given)]

    def _on_device(self, dev: str | None) -> list[Port]:
        return [port for port in self._vtep.ports.values() if dev in (port.tap, port.config.tap)]

    def one(self, given: Params) -> Port:
        """Return the segment that is named, or the only one. Raises: ConfigError or VtepError."""
        ports = self._vtep.ports
        vni, dev = given.vni(), given.text("dev")
        if vni is not None and dev is None and vni in ports:
            return ports[vni]
        there = ", ".join(f"vni {port.config.vni} dev {port.tap}" for port in ports.values())
        there = there or "none at all"
        if vni is None and dev is None and not ports:
            raise ConfigError("there is no segment; add one: pyvtep vni add N")
        if vni is None and dev is None and len(ports) > 1:
            raise ConfigError(f"several segments: choose one with --vni N or dev TAP: {there}")
        if vni is not None and vni not in ports:
            raise VtepError(f"vni {vni}: there is no such segment; there is {there}")
        found = self._on_device(dev) if dev is not None else list(ports.values())
        if vni is None and len(found) > 1:
            vnis = ", ".join(str(port.config.vni) for port in found)
            raise ConfigError(f"dev {dev}: has a VNI for each VLAN; choose one with --vni: {vnis}")
        for port in found:
            if vni in (None, port.config.vni):
                return port
        if vni is not None:
            raise VtepError(f"dev {dev}: contradicts vni {vni}, which is on {ports[vni].tap}")
        raise VtepError(f"dev {dev}: there is no such segment; there is {there}")


def pages(items: Iterator[_T]) -> Iterator[list[_T]]:
    """Yield items in lists of the size of a page."""
    while page := list(islice(items, _PAGE)):
        yield page
