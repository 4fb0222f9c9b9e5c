"""The configuration of a VTEP: frozen objects, checked when they are made.

`options` has the options of a segment, and `settings` those of a process. Each option has a parser
in `option_parsers` or `address_parsers`; `overlap` and `conflicts` have rules for several options
and segments. `file` parses TOML text, and `loader` reads such a file.
"""

from vtep.config.conflicts import check_segments, conflicts
from vtep.config.options import Config
from vtep.config.settings import Settings

__all__ = ["Config", "Settings", "check_segments", "conflicts"]
