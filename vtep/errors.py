"""What can go wrong for a person, each with the exit code that tells a script.

A message says in one line what is wrong, which option or file it is about, and what to do.
"""

_LINE_MAX = 400


class VtepError(Exception):
    """The machine, its kernel or its network refused something (exit code 1)."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # What people typed is quoted in messages: it must not break the line, nor fill the screen.
        line = "".join(char if char.isprintable() else "?" for char in message)
        super().__init__(line if len(line) <= _LINE_MAX else line[:_LINE_MAX] + " ...")


class ConfigError(VtepError, ValueError):
    """What was asked for makes no sense on any machine (exit code 2)."""

    exit_code = 2


class NotReadyError(VtepError):
    """The host lacks something, such as an address or a device, that may appear later."""


class FdbError(VtepError):
    """The forwarding database as it is does not allow what was asked of it (exit code 1)."""


class NeighbourError(VtepError):
    """The table of neighbours as it is does not allow what was asked of it (exit code 1)."""
