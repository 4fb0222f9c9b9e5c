"""The syntax of `bridge fdb` and `ip neigh`: words in any order, some followed by a value.

Words are parsed to parameters of the methods of the control socket, which check the values.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from vtep.errors import ConfigError

SEGMENT: Mapping[str, str] = {"dev": "dev", "src_vni": "vni"}
DESTINATION: Mapping[str, str] = {"dst": "dst", "port": "port", "vni": "dst_vni", "via": "via"}

_STATES = {name: ("state", name) for name in ("permanent", "static", "dynamic")}

KIND: Mapping[str, tuple[str, Any]] = {
    **_STATES,
    "local": ("state", "permanent"),  # A synonym in `bridge fdb`, too.
    "extern_learn": ("extern_learn", True),
    "sticky": ("sticky", True),
    "self": ("", None),  # The default in `bridge fdb`, whose other choice is "master".
}
FILTER: Mapping[str, tuple[str, Any]] = {
    **{name: (name, True) for name in (*_STATES, "extern_learn", "sticky", "held")},
    **{f"no{name}": (name, False) for name in (*_STATES, "extern_learn", "sticky", "held")},
    "self": ("", None),
}


_SYNONYMS = {
    "remote": "dst",
    "to": "dst",
    "dest": "dst",
    "destination": "dst",
    "dstport": "port",
    "tap": "dev",
    "device": "dev",
    "mac": "lladdr",
    "learned": "dynamic",
}
"""Words of other programs, with the word of the same meaning here."""


@frozen
class Grammar:
    """The words of one command, each with its parameter.

    `subject` is the parameter whose value has no word before it. `values` are words followed by a
    value, and `flags` words with a value of their own; the parameter "" is ignored.
    """

    subject: str | None = None
    values: Mapping[str, str] = field(factory=dict)
    flags: Mapping[str, tuple[str, Any]] = field(factory=dict)

    def parse(self, words: Iterable[str]) -> dict[str, Any]:
        """Return the parameters that words stand for.

        Raises: ConfigError for an unknown word, a missing value or a contradiction.
        """
        params: dict[str, Any] = {}
        rest = iter(words)
        for word in rest:
            if word in self.values:
                name, value = self.values[word], next(rest, None)
                if value is None:
                    raise ConfigError(f"{word}: its value is missing")
            elif word in self.flags:
                name, value = self.flags[word]
                if not name:  # A word without effect, such as "self".
                    continue
            elif self.subject is not None and self.subject not in params:
                name, value = self.subject, word
            else:
                known = " ".join((*self.values, *self.flags))
                hint = self._hint(word)
                raise ConfigError(f"{word}: is not expected here; {hint}known are: {known}")
            if name in params:
                raise ConfigError(f"{word}: is given twice, or contradicts an earlier word")
            params[name] = value
        return params

    def _hint(self, word: str) -> str:
        """Return a suggestion for an unknown word, followed by a blank; "" if there is none."""
        import difflib  # noqa: PLC0415  needed for mistakes only

        # From the most specific pattern to the least: a MAC, an IP address, a number, any word.
        if word[:1].isalnum() and re.fullmatch(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}", word):
            return f"did you mean: lladdr {word}? " if "lladdr" in self.values else ""
        if "dst" in self.values and re.fullmatch(r"[0-9a-fA-F:.]*[:.][0-9a-fA-F:.%\w]*", word):
            return f"did you mean: dst {word}? "
        if self.subject == "remote" and re.fullmatch(r"[0-9a-fA-F:.]*[:.][0-9a-fA-F:.%\w]*", word):
            return "give one remote at a time; "
        if "dst" in self.values and self.subject is None and word in ("all", "any", "*"):
            return "without a filter all are selected; "
        # The closest word is src_vni, but the option selects the segment in all commands.
        if word == "vni" and "src_vni" in self.values:
            return "did you mean --vni? "
        if word.isdecimal() and "src_vni" in self.values:
            return f"did you mean: --vni {word}? "
        wanted = _SYNONYMS.get(word)
        close = difflib.get_close_matches(word.lower(), self.words(), 1)
        if wanted in self.words():
            close = [str(wanted)]
        if not close and self.subject is None and re.fullmatch(r"[a-z][\w.-]*[0-9]", word):
            return f"did you mean: dev {word}? "
        return f"did you mean {close[0]}? " if close else ""

    def word_for(self, parameter: str) -> str:
        """Return the word before the value of a parameter, or the parameter if there is none."""
        for word, name in self.values.items():
            if name == parameter:
                return word
        return parameter

    def words(self) -> list[str]:
        """Return all words, for completion."""
        return [*self.values, *self.flags]
