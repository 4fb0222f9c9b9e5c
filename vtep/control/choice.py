"""Which of the running pyvteps a command means, where it names no socket.

A pyvtep of another network namespace is not changed by a command that happens to find its socket:
all network namespaces of a host share /run. It is asked where there is none here, and that is said.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import frozen

from vtep.errors import VtepError

READS = frozenset(
    (
        *("ping", "process.show", "fdb.show", "fdb.get", "neigh.show", "remote.show"),
        *("vni.show", "stats", "monitor.subscribe"),
    )
)
"""The methods that change nothing."""


@frozen
class Segment:
    """A VNI of a running pyvtep, and the names of its TAP: as it is now, and as configured."""

    vni: int
    dev: str
    tap: str

    def is_meant(self, vni: int | None, dev: str | None) -> bool:
        """Return whether a command that names this VNI and TAP, None being any, means it."""
        return vni in (None, self.vni) and dev in (None, self.dev, self.tap)


@frozen
class Candidate:
    """A running pyvtep that may be meant.

    `pid` is 0 where it is in another PID namespace, and `here` is False where it is not known to
    be in the caller's network namespace. `segments` are None where it was not asked, or did not
    answer.
    """

    path: Path
    pid: int
    here: bool
    segments: tuple[Segment, ...] | None = None

    def __str__(self) -> str:
        """Describe it for a message: its segments, its socket and its process."""
        segments = ", ".join(f"vni {each.vni} dev {each.dev}" for each in self.segments or ())
        what = "" if self.segments is None else f"{segments or 'no vni'} at "
        return f"{what}{self.path} ({self.process})"

    @property
    def process(self) -> str:
        """Its process, in words."""
        return f"process {self.pid}" if self.pid else "a process of another PID namespace"


def choose(
    candidates: Sequence[Candidate],
    *,
    vni: int | None = None,
    dev: str | None = None,
    changes: bool = True,
    every: bool = False,
) -> list[Candidate]:
    """Return the pyvtep that a command means, or with `every` all that it may be about.

    `vni` and `dev` are the segment that it names. Raises VtepError, with the candidates, where none
    is meant, or it is not clear which.
    """
    here = [each for each in candidates if each.here]
    if not here:
        return [_elsewhere(candidates, vni, dev, changes=changes)]
    if len(here) == 1:
        return here
    if vni is None and dev is None:
        if every:
            return here
        raise VtepError(
            "several pyvtep's are running; choose one with --socket PATH, --vni N or dev TAP: "
            f"there is {_listed(here)}"
        )
    named = _having(here, vni, dev)
    if not named:
        raise VtepError(f"{_name(vni, dev)}: no pyvtep here has it; there is {_listed(here)}")
    if len(named) > 1 and not every:
        raise VtepError(
            f"{_name(vni, dev)}: several pyvtep's have it; choose one with --socket PATH: there is "
            f"{_listed(named)}"
        )
    return named


def _elsewhere(
    candidates: Sequence[Candidate], vni: int | None, dev: str | None, *, changes: bool
) -> Candidate:
    """Return the only pyvtep of other network namespaces that is meant, for a command that reads.

    Raises VtepError for one that changes something, and where several may be meant.
    """
    if changes:
        raise VtepError(
            "no pyvtep runs in this network namespace; to change one of another, name its "
            f"--socket: there is {_listed(candidates)}"
        )
    named = candidates
    if (vni, dev) != (None, None) and len(candidates) > 1:
        named = _having(candidates, vni, dev)
    if len(named) != 1:
        raise VtepError(
            "no pyvtep runs in this network namespace; choose one of another with --socket PATH: "
            f"there is {_listed(candidates)}"
        )
    return named[0]


def _having(candidates: Iterable[Candidate], vni: int | None, dev: str | None) -> list[Candidate]:
    return [
        each
        for each in candidates
        if any(segment.is_meant(vni, dev) for segment in each.segments or ())
    ]


def _name(vni: int | None, dev: str | None) -> str:
    return f"dev {dev}" if vni is None else f"vni {vni}" + (f" dev {dev}" if dev else "")


def _listed(candidates: Iterable[Candidate]) -> str:
    return "; ".join(map(str, candidates))
