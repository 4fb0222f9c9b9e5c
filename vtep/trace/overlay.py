"""A dict on top of another one, which stays as it is."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class Overlay(MutableMapping[_K, _V]):
    """A mapping that begins with the items of another one, and keeps its changes to itself.

    A value is copied when it is first read, so that a change of it stays here, too. To make an
    overlay takes the same time for every size.
    """

    def __init__(self, original: Mapping[_K, _V], copy: Callable[[_V], _V]) -> None:
        self._original = original
        self._copy = copy
        self._own: dict[_K, _V] = {}
        # Keys that were deleted. One that was set again stays here: its place is at the end.
        self._deleted: set[_K] = set()

    def _is_original(self, key: object) -> bool:
        return key not in self._deleted and key in self._original

    def __getitem__(self, key: _K) -> _V:
        if key not in self._own:
            if key in self._deleted:
                raise KeyError(key)
            self._own[key] = self._copy(self._original[key])
        return self._own[key]

    def __setitem__(self, key: _K, value: _V) -> None:
        self._own[key] = value

    def __delitem__(self, key: _K) -> None:
        if key not in self:
            raise KeyError(key)
        self._own.pop(key, None)
        if key in self._original:
            self._deleted.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self._own or self._is_original(key)

    def __iter__(self) -> Iterator[_K]:
        yield from (key for key in self._original if key not in self._deleted)
        yield from (key for key in tuple(self._own) if not self._is_original(key))

    def __len__(self) -> int:
        added = sum(not self._is_original(key) for key in self._own)
        return len(self._original) - len(self._deleted) + added
