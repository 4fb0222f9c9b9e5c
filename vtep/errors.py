"""What can go wrong for a person, each with the exit code that tells a script.

A message says in one line what is wrong, which option or file it is about, and what to do.
"""


class VtepError(Exception):
    """The machine, its kernel or its network refused something (exit code 1)."""

    exit_code = 1


class ConfigError(VtepError, ValueError):
    """What was asked for makes no sense on any machine (exit code 2)."""

    exit_code = 2
