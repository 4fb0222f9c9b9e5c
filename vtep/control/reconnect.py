"""The connection of a view, such as a page or an exporter, which outlives a VTEP."""

from collections.abc import Callable
from pathlib import Path

from vtep.control import socket_files
from vtep.control.choice import Candidate, choose
from vtep.control.client import Client, candidates
from vtep.errors import VtepError


class Connector:
    """Connects to one VTEP, and again to that one, which may be another process then.

    It is the one at `socket`, or else the one that is found. If that is in this network namespace,
    so are its successors, and they have its socket or one of its VNIs: any other VTEP is not what
    the user has chosen, even if it is the only one that is left. `elsewhere` is called with one of
    another network namespace, if there is no other at first; without it, such a VTEP is refused.
    """

    def __init__(
        self,
        socket: str | None,
        vni: int | None = None,
        *,
        timeout: float,
        elsewhere: Callable[[Candidate], None] | None = None,
    ) -> None:
        self._given = socket
        self._vni = vni
        self._timeout = timeout
        self._elsewhere = elsewhere
        self.path: Path | None = None if socket is None else Path(socket)
        """The socket of the last connection; None before."""
        self._is_pinned = socket is not None
        self._vnis: frozenset[int] = frozenset()

    def __call__(self) -> Client:
        """Return a client. Raises: VtepError if the VTEP does not answer."""
        if self.path is None or not self._is_pinned:
            self.path = self._find()
        return Client(self.path, timeout=self._timeout)

    def check(self) -> None:
        """Raise VtepError if it is unclear which VTEP is meant. There may be none yet."""
        if self._given is None and (here := [each for each in candidates() if each.here]):
            choose(here, vni=self._vni, by_segment=self._vni is not None)

    def _find(self) -> Path:
        found = candidates(ask=True)
        if not found:
            raise socket_files.none_found()
        if here := [each for each in found if each.here]:
            (chosen,) = choose(
                self._successors(here), vni=self._vni, by_segment=self._vni is not None
            )
            self._vnis = _vnis(chosen) or self._vnis
            return chosen.path
        if self.path is None and self._elsewhere is not None:
            (chosen,) = choose(found, vni=self._vni, changes=False)
            self._elsewhere(chosen)
            self._is_pinned = True
            return chosen.path
        raise VtepError(
            "no pyvtep runs in this network namespace; to reach one in another namespace, use "
            f"--socket PATH: there is {'; '.join(map(str, found))}"
        )

    def _successors(self, here: list[Candidate]) -> list[Candidate]:
        """Return those that may be the VTEP that was shown before; all if there was none."""
        if self.path is None:
            return here
        # A restarted VTEP may have another TAP, and its socket another name.
        same = [each for each in here if each.path == self.path]
        same = same or [each for each in here if _vnis(each) & self._vnis]
        if not same:
            raise VtepError(
                f"--socket {self.path}: no pyvtep answers there any more; to show another one, "
                f"name its --socket: there is {'; '.join(map(str, here))}"
            )
        return same


def _vnis(process: Candidate) -> frozenset[int]:
    return frozenset(each.vni for each in process.segments or ())
