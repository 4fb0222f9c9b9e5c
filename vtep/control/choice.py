"""The choice among running pyvteps, for a command without --socket.

All network namespaces of a host share /run. A command finds the sockets of other namespaces, too,
but does not change their pyvteps. If there is none in its own, it may read from another one, and
says so.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from vtep.errors import VtepError


@frozen
class SegmentName:
    """A VNI of a running pyvtep, with the present (`dev`) and the configured name of its TAP."""

    vni: int
    dev: str
    tap: str

    def matches(self, vni: int | None, dev: str | None) -> bool:
        """Return whether it has this VNI and this TAP; None stands for any."""
        return vni in (None, self.vni) and dev in (None, self.dev, self.tap)


@frozen
class Candidate:
    """A running pyvtep that a command may be for.

    `pid` is 0 if it is in another PID namespace. `here` is True if it is known to be in the network
    namespace of the caller. `segments` is None if it was not asked, or did not answer.
    """

    path: Path
    pid: int
    here: bool
    segments: tuple[SegmentName, ...] | None = None

    def __str__(self) -> str:
        """Format its segments, its socket and its process for a message."""
        segments = ", ".join(f"vni {each.vni} dev {each.dev}" for each in self.segments or ())
        what = "" if self.segments is None else f"{segments or 'no vni'} at "
        return f"{what}{self.path} ({self.process})"

    @property
    def process(self) -> str:
        """Its process, for a message."""
        return f"process {self.pid}" if self.pid else "a process of another PID namespace"


def choose(
    candidates: Sequence[Candidate],
    *,
    vni: int | None = None,
    dev: str | None = None,
    changes: bool = True,
    every: bool = False,
    by_segment: bool = True,
) -> list[Candidate]:
    """Return the pyvtep that a command is for; with `every`, all that match.

    `vni` and `dev` are the segment that the command names. Without `by_segment`, it can name none.

    Raises: VtepError, with the candidates, if none matches, or several do.
    """
    here = [each for each in candidates if each.here]
    if not here:
        return [_elsewhere(candidates, vni, dev, changes=changes)]
    if len(here) == 1:
        return here
    if vni is None and dev is None:
        if every:
            return here
        how = "--socket PATH, --vni N or dev TAP" if by_segment else "--socket PATH"
        raise VtepError(
            f"several pyvteps are running; choose one with {how}: there is {_listed(here)}"
        )
    named = _matching(here, vni, dev)
    if not named:
        raise VtepError(f"{_name(vni, dev)}: no pyvtep here has it; there is {_listed(here)}")
    if len(named) > 1 and not every:
        raise VtepError(
            f"{_name(vni, dev)}: several pyvteps have it; choose one with --socket PATH: there is "
            f"{_listed(named)}"
        )
    return named


def choose_having(candidates: Sequence[Candidate], vni: int | None, dev: str | None) -> Candidate:
    """Return the pyvtep to read from that has a segment, if one is named.

    Unlike with `choose`, the only pyvtep has to have it, too: later calls need not name it.
    """
    (found,) = choose(candidates, vni=vni, dev=dev, changes=False)
    is_named = vni is not None or dev is not None
    if is_named and found.segments is not None and not _matching([found], vni, dev):
        raise VtepError(f"{_name(vni, dev)}: the only pyvtep does not have it; there is {found}")
    return found


def _elsewhere(
    candidates: Sequence[Candidate], vni: int | None, dev: str | None, *, changes: bool
) -> Candidate:
    """Return the only pyvtep of other network namespaces that matches, for a command that reads.

    Raises: VtepError for a command that changes something, and if several match.
    """
    if changes:
        raise VtepError(
            "no pyvtep runs in this network namespace; to change one of another, name its "
            f"--socket: there is {_listed(candidates)}"
        )
    named = candidates
    if (vni, dev) != (None, None) and len(candidates) > 1:
        named = _matching(candidates, vni, dev)
    if len(named) != 1:
        raise VtepError(
            "no pyvtep runs in this network namespace; to reach one in another namespace, use "
            f"--socket PATH: there is {_listed(candidates)}"
        )
    return named[0]


def _matching(candidates: Iterable[Candidate], vni: int | None, dev: str | None) -> list[Candidate]:
    return [
        each
        for each in candidates
        if any(segment.matches(vni, dev) for segment in each.segments or ())
    ]


def _name(vni: int | None, dev: str | None) -> str:
    return f"dev {dev}" if vni is None else f"vni {vni}" + (f" dev {dev}" if dev else "")


def _listed(candidates: Iterable[Candidate]) -> str:
    return "; ".join(map(str, candidates))
