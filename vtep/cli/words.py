"""The grammar of `bridge fdb` and `ip neigh`: words in any order, some followed by a value.

What becomes of them are the parameters of the control socket's methods. That a value makes sense is
judged there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from vtep.errors import ConfigError

SEGMENT: Mapping[str, str] = {"dev": "dev", "src_vni": "vni"}
DESTINATION: Mapping[str, str] = {"dst": "dst", "port": "port", "vni": "dst_vni", "via": "via"}

_STATES = {name: ("state", name) for name in ("permanent", "static", "dynamic")}

KIND: Mapping[str, tuple[str, Any]] = {
    **_STATES,
    "local": ("state", "permanent"),  # What `bridge fdb` calls it as well.
    "extern_learn": ("extern_learn", True),
    "sticky": ("sticky", True),
    "self": ("", None),  # There is no other place that an entry could be in.
}
FILTER: Mapping[str, tuple[str, Any]] = {
    **{name: (name, True) for name in (*_STATES, "extern_learn", "sticky")},
    **{f"no{name}": (name, False) for name in (*_STATES, "extern_learn", "sticky")},
    "self": ("", None),
}


@frozen
class Grammar:
    """What words there may be.

    `subject` is the parameter whose value stands without a word before it. `values` are words that
    a value follows, and `flags` those that stand for one; each with its parameter.
    """

    subject: str | None = None
    values: Mapping[str, str] = field(factory=dict)
    flags: Mapping[str, tuple[str, Any]] = field(factory=dict)

    def parse(self, words: Iterable[str]) -> dict[str, Any]:
        """The parameters that words stand for; raises ConfigError for words that make no sense."""
        given: dict[str, Any] = {}
        rest = iter(words)
        for word in rest:
            if word in self.values:
                name, value = self.values[word], next(rest, None)
                if value is None:
                    raise ConfigError(f"{word}: its value is missing")
            elif word in self.flags:
                name, value = self.flags[word]
                if not name:
                    continue
            elif self.subject is not None and self.subject not in given:
                name, value = self.subject, word
            else:
                known = " ".join((*self.values, *self.flags))
                raise ConfigError(f"{word}: is not understood here; known are: {known}")
            if name in given:
                raise ConfigError(f"{word}: is given twice, or contradicts what is before it")
            given[name] = value
        return given

    def words(self) -> list[str]:
        """All that may stand here, for completion."""
        return [*self.values, *self.flags]
