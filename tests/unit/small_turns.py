"""A compiled entry point that takes a second to compile, in place of the turns of the fast path."""

from vtep.fastpath.jit import compiled, entry_point


@compiled
def _double(number: int) -> int:
    return number * 2


@entry_point("int64(int64)")
def answer(number: int) -> int:
    return _double(number) + 1
