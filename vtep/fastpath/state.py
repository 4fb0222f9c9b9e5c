"""States of the fast path, as they are shown to users."""

from enum import StrEnum
from types import ModuleType
from typing import Final, Self, TypeAlias

from attrs import frozen

Turns: TypeAlias = ModuleType
"""The module of the compiled entry points, which is imported once they can be loaded."""


class FastPathStatus(StrEnum):
    """The stages from a start to compiled turns that forward."""

    ON = "on"
    LOADING = "loading"
    COMPILING = "compiling"
    OFF = "off"


@frozen
class FastPathState:
    """A status, with a reason where it is not "on"."""

    status: FastPathStatus
    reason: str | None = None

    @classmethod
    def of(cls, status: str, reason: str | None) -> Self:
        """Return the state that a control socket has reported."""
        return cls(FastPathStatus(status), reason)

    def __str__(self) -> str:
        """Return the state in words: "on", or "off: numba is not installed (...)"."""
        if self.reason is None:
            return str(self.status)
        separator = ": " if self.status is FastPathStatus.OFF else ", "
        return f"{self.status}{separator}{self.reason}"


ON: Final = FastPathState(FastPathStatus.ON)

LOADING: Final = FastPathState(FastPathStatus.LOADING)

# 20 to 40 s of CPU time, if a processor is idle: the compiler has the lowest priority.
COMPILING: Final = FastPathState(FastPathStatus.COMPILING, "on in about half a minute")

WAITING: Final = FastPathState(
    FastPathStatus.COMPILING, "on when another pyvtep of this host has compiled it"
)

DISABLED: Final = FastPathState(FastPathStatus.OFF, "--no-fast-path")

OBSERVED: Final = FastPathState(
    FastPathStatus.OFF, "a capture shows each frame; it is on again when the capture has ended"
)

VLAN: Final = FastPathState(
    FastPathStatus.OFF,
    "its frames are those of a VLAN of the TAP (--vlan); a TAP of its own would be faster",
)

NOT_INSTALLED: Final = FastPathState(
    FastPathStatus.OFF,
    "numba is not installed (scripts/setup, or pip install numba)",
)

TURN_FAILED: Final = FastPathState(
    FastPathStatus.OFF, "an error in the compiled turn (see the log); please report it"
)


def off(reason: str) -> FastPathState:
    """Return the state "off" with a reason."""
    return FastPathState(FastPathStatus.OFF, reason)
