"""The accepted sources of datagrams, as a set and as a classic BPF program.

The kernel runs the program for each datagram, so that a flood from other sources costs no receive
call. The program checks the device on which the datagram arrived, and its source address. It may
accept too much, since every datagram is admitted by its segment, too. It must never reject an
accepted source.

The language is that of `linux/filter.h`, with the ancillary offsets of the kernel's
Documentation/networking/filter.rst.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import pairwise
from struct import Struct
from typing import Self, TypeAlias

from attrs import evolve, frozen

Prefix: TypeAlias = tuple[int, int]
"""A prefix: its first address as a number, and its length in bits."""

Label: TypeAlias = object
Item: TypeAlias = tuple[int, int, Label]
"""A range of values of the accumulator, with both ends, and the label to jump to for them."""

INSTRUCTIONS_MAX = 4096
"""BPF_MAXINSNS of `linux/bpf_common.h`."""

_INSTRUCTION = Struct("=HBBI")
"""struct sock_filter: code, jump if true, jump if false, operand."""

# Codes of `linux/bpf_common.h`: BPF_LD | BPF_W | BPF_ABS; BPF_JMP | BPF_JA, BPF_JEQ, BPF_JGT and
# BPF_JGE; BPF_RET. The operand is a constant.
_LOAD = 0x20
_JUMP = 0x05
_JUMP_EQUAL = 0x15
_JUMP_GREATER = 0x25
_JUMP_NOT_LESS = 0x35
_RETURN = 0x06

# SKF_NET_OFF, where the IP header begins, and SKF_AD_OFF + SKF_AD_IFINDEX.
_IP_HEADER = -0x100000
_DEVICE = -0x1000 + 8

_SOURCE_AT = {4: 12, 6: 8}
_BITS = {4: 32, 6: 128}
_WORD = 32
_WORD_MAX = (1 << _WORD) - 1

_LINEAR_MAX = 16
"""Values up to which they are compared one by one, which is as fast as a binary search then."""


@frozen
class IngressFilter:
    """The accepted sources of one IP version, and the devices on which nothing is accepted.

    `sources` are disjoint and in order. `denied` are interface indices, as ranges with both ends.
    """

    version: int
    sources: tuple[Prefix, ...]
    denied: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(
        cls,
        version: int,
        hosts: Iterable[str],
        networks: Iterable[IPv4Network | IPv6Network],
        denied: Iterable[int],
    ) -> Self:
        """Return the filter that accepts hosts and networks of an IP version.

        `hosts` are numeric addresses. `denied` are interface indices.
        """
        bits = _BITS[version]
        found = {(_number(host), bits) for host in hosts if (":" in host) is (version == 6)}
        found |= {
            (int(network.network_address), network.prefixlen)
            for network in networks
            if network.version == version
        }
        return cls(version, _disjoint(found, bits), _ranges(denied))

    @property
    def accepts_all(self) -> bool:
        """True if the filter accepts every datagram."""
        return self._accepts_any_source and not self.denied

    @property
    def _accepts_any_source(self) -> bool:
        return self.sources == ((0, 0),)

    def denies(self, device: int) -> bool:
        """Return True if datagrams that arrive on the device of this index are rejected."""
        return any(first <= device <= last for first, last in self.denied)

    def accepts(self, source: str, device: int) -> bool:
        """Return True if the program accepts a datagram."""
        if self.denies(device):
            return False
        bits, number = _BITS[self.version], _number(source)
        return any(
            number >> bits - length == first >> bits - length for first, length in self.sources
        )

    def coarsened(self, most: int) -> Self:
        """Return a filter of at most `most` prefixes that accepts all that this one does.

        Adjacent prefixes with the most bits in common are replaced by one that covers both.
        """
        if len(self.sources) <= most:
            return self
        bits = _BITS[self.version]
        common = [
            min(one[1], two[1], bits - (one[0] ^ two[0]).bit_length())
            for one, two in pairwise(self.sources)
        ]
        closest = sorted(range(len(common)), key=common.__getitem__, reverse=True)
        joined = set(closest[: len(self.sources) - most])
        found: list[Prefix] = []
        for at, prefix in enumerate(self.sources):
            if at - 1 in joined:
                first, length = found[-1]
                found[-1] = (first, min(length, common[at - 1]))
            else:
                found.append(prefix)
        return evolve(self, sources=_disjoint(found, bits))

    def program(self, accept: int, reject: int) -> bytes:
        """Return the program as an array of struct sock_filter.

        It returns `accept` or `reject`. If it is longer than the kernel accepts
        (`INSTRUCTIONS_MAX`), the caller has to use `coarsened` first.
        """
        code = _Assembler()
        if self.denied:
            code.load(_DEVICE)
            code.search([(first, last, "reject") for first, last in self.denied], "source")
        code.label("source")
        if self._accepts_any_source:
            code.jump("accept")
        else:
            self._match(code, self.sources, 0)
        code.label("accept")
        code.ret(accept)
        code.label("reject")
        code.ret(reject)
        return code.assemble()

    def _match(self, code: "_Assembler", sources: Sequence[Prefix], word: int) -> None:
        """Compare a word of the source address, and following words where prefixes are longer.

        All `sources` have the same words before it.
        """
        shift = _BITS[self.version] - _WORD * (word + 1)
        items: list[Item] = []
        rest: dict[int, list[Prefix]] = {}
        for first, length in sources:
            value = first >> shift & _WORD_MAX
            free = _WORD * (word + 1) - length
            if free < 0:
                if value not in rest:
                    rest[value] = []
                    items.append((value, value, (word, first >> shift)))
                rest[value].append((first, length))
            elif items and items[-1][2] == "accept" and items[-1][1] + 1 == value:
                items[-1] = (items[-1][0], value + (1 << free) - 1, "accept")
            else:
                items.append((value, value + (1 << free) - 1, "accept"))
        code.load(_IP_HEADER + _SOURCE_AT[self.version] + word * _WORD // 8)
        code.search(items, "reject")
        for longer in rest.values():
            code.label((word, longer[0][0] >> shift))
            self._match(code, longer, word + 1)


class _Assembler:
    """A program whose jumps may lead to labels that are defined later."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._jumps: dict[int, Label] = {}
        self._labels: dict[Label, int] = {}

    def load(self, offset: int) -> None:
        """Load a word of the packet into the accumulator."""
        self._add(_LOAD, 0, 0, offset & _WORD_MAX)

    def ret(self, value: int) -> None:
        """Return a value from the program."""
        self._add(_RETURN, 0, 0, value)

    def jump(self, label: Label) -> None:
        """Jump to a label."""
        self._jumps[len(self._code)] = label
        self._add(_JUMP, 0, 0, 0)

    def label(self, label: Label) -> None:
        """Define a label for the next instruction."""
        self._labels[label] = len(self._code)

    def _add(self, code: int, if_true: int, if_false: int, operand: int) -> None:
        self._code.append((code, if_true, if_false, operand))

    def search(self, items: Sequence[Item], otherwise: Label) -> None:
        """Jump to the label of the item that contains the accumulator's value.

        `items` are disjoint and in order. A conditional jump has an offset of 8 bits, so it only
        skips an unconditional one, which has 32.
        """
        if len(items) <= _LINEAR_MAX:
            self._compare(items, otherwise)
            return
        half = len(items) // 2
        right = object()
        self._add(_JUMP_NOT_LESS, 0, 1, items[half][0])
        self.jump(right)
        self.search(items[:half], otherwise)
        self.label(right)
        self.search(items[half:], otherwise)

    def _compare(self, items: Sequence[Item], otherwise: Label) -> None:
        """Compare with few items one by one. Single values of one label share a jump."""
        single = [(first, label) for first, last, label in items if first == last]
        shared = single[0][1] if single else None
        equal = [first for first, label in single if label == shared]
        for first, last, label in items:
            if first != last:
                self._add(_JUMP_NOT_LESS, 0, 2, first)
                self._add(_JUMP_GREATER, 1, 0, last)
                self.jump(label)
            elif label != shared:
                self._add(_JUMP_EQUAL, 0, 1, first)
                self.jump(label)
        for left, first in zip(range(len(equal), 0, -1), equal, strict=True):
            self._add(_JUMP_EQUAL, left, 0, first)
        self.jump(otherwise)
        if equal:
            self.jump(shared)

    def assemble(self) -> bytes:
        """Return the program as octets."""
        code = list(self._code)
        for at, label in self._jumps.items():
            code[at] = (_JUMP, 0, 0, self._labels[label] - at - 1)
        return b"".join(_INSTRUCTION.pack(*each) for each in code)


@lru_cache(maxsize=1 << 16)
def _number(host: str) -> int:
    return int(ip_address(host.partition("%")[0]))


def _disjoint(prefixes: Iterable[Prefix], bits: int) -> tuple[Prefix, ...]:
    """Return prefixes in order, without those that are part of another one."""
    found: list[Prefix] = []
    for first, length in sorted(
        (first >> bits - length << bits - length, length) for first, length in prefixes
    ):
        if found:
            covering, wide = found[-1]
            if wide <= length and covering >> bits - wide == first >> bits - wide:
                continue
        found.append((first, length))
    return tuple(found)


def _ranges(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return numbers as ranges in order, each with its first and last number."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and found[-1][1] + 1 == number:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)
