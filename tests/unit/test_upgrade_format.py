"""The messages of an upgrade: whatever octets arrive, they are a message or are refused."""

import json
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.upgrade import format as fmt
from vtep.upgrade.format import FormatError, Message, decode, encode

NUMBERS = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def with_body(
    body: bytes, *, magic: bytes = b"pvup", major: int = fmt.MAJOR, fds: int = 0
) -> bytes:
    """Put a header in front of octets that need not be JSON."""
    return struct.pack("!4sHHI", magic, major, fds, len(body)) + body


def nest(levels: int) -> Any:
    """Return arrays in arrays, of so many levels."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def depth(value: object) -> int:
    """Return the levels of arrays and objects in a value."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(st.text(), st.dictionaries(st.text().filter("kind".__ne__), VALUES), st.integers(0, 250))
def test_a_message_returns_unless_it_is_too_deep(
    kind: str, fields: dict[str, Any], descriptors: int
) -> None:
    octets = encode(kind, fields, descriptors=descriptors)
    if depth(fields) > 8:
        with pytest.raises(FormatError, match="deeply"):
            decode(octets)
    else:
        assert decode(octets) == Message(kind, fields, descriptors)


@given(st.binary(), st.binary(), st.integers(0, 300))
def test_hostile_octets_raise_one_error_only(loose: bytes, body: bytes, fds: int) -> None:
    for octets in (loose, with_body(body, fds=fds), with_body(b'{"kind":"x","a":' + body + b"}")):
        with suppress(FormatError):
            decode(octets)


@given(st.data())
def test_a_damaged_message_is_refused_or_still_a_message(data: st.DataObject) -> None:
    octets = bytearray(encode("fdb", {"vni": 1, "entries": [["02", [0], 1.5, "static"]]}))
    for at, octet in data.draw(
        st.lists(st.tuples(st.integers(0, len(octets) - 1), st.integers(0, 255)), max_size=4)
    ):
        octets[at] = octet
    try:
        message = decode(bytes(octets))
    except FormatError:
        return
    for read in (message.integer, message.text, message.number, message.items, message.mapping):
        for name in ("vni", "entries", "absent"):
            with suppress(FormatError):
                read(name)


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"pvup", "4 octets are no message"),
        (with_body(b'{"kind":"x"}', magic=b"pvpu"), "no pyvtep that upgrades"),
        (with_body(b'{"kind":"x"}', major=2), "version 2 .* restart pyvtep instead"),
        (with_body(b'{"kind":"x"}', fds=251), "does not match"),
        (with_body(b'{"kind":"x"}')[:-1], "does not match"),
        (with_body(b'{"kind":"x"}') + b" ", "does not match"),
        (with_body(b'{"kind":"x","a":NaN}'), "no JSON"),
        (with_body(b'{"kind":"x","a":-Infinity}'), "no JSON"),
        (with_body(b'{"kind":"\xff"}'), "no JSON"),
        (with_body(b'{"kind":1}'), "no kind"),
        (with_body(b'{"name":"x"}'), "no kind"),
        (with_body(b'["kind"]'), "no kind"),
        (with_body(b"[" * 100_000), "too deeply"),
        (with_body(b'{"kind":"x","a":"]]]]]]]]]]","b":' + b"[" * 9 + b"]" * 9 + b"}"), "deeply"),
        (with_body(b'"' + b'\\"' * 60_000), "no JSON"),
    ],
)
def test_what_is_no_message_is_refused_with_a_reason(octets: bytes, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        decode(octets)


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    fields = {"reason": '[[[[[[[[[[ \\" {{{{{{{{{{', "deep": nest(7)}
    assert decode(encode("failed", fields)).fields == fields


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(FormatError, match="too many"):
        encode("fdb", {"a": "x" * fmt.MESSAGE_MAX})


def test_fields_and_columns_of_a_newer_version_are_ignored() -> None:
    message = decode(encode("fdb", {"vni": 3, "new": [1], "entries": [["a", 1, {"new": 2}]]}))
    assert message.integer("vni") == 3
    assert list(message.rows("entries", str, int)) == [("a", 1)]


def test_absent_fields_have_their_default() -> None:
    message = Message("x", {})
    assert message.text("a", "b") == "b"
    assert message.integer("a", 7) == 7
    assert message.number("a", 0.5) == 0.5
    assert message.mapping("a") == {}
    assert message.items("a") == []
    assert list(message.rows("a", str)) == []


@given(VALUES)
def test_a_field_has_its_type_or_is_refused(value: object) -> None:
    message = Message("x", {"a": value})
    is_bool = isinstance(value, bool)
    is_int, is_float = isinstance(value, int) and not is_bool, isinstance(value, float)
    for read, fits in (
        (message.text, isinstance(value, str)),
        (message.mapping, isinstance(value, dict)),
        (message.items, isinstance(value, list)),
        (message.integer, is_int and 0 <= value < 1 << 63),  # type: ignore[operator]
        (message.number, (is_int or is_float) and abs(value) <= 1e18),  # type: ignore[arg-type]
    ):
        if fits:
            assert read("a") == value
        else:
            with pytest.raises(FormatError):
                read("a")


@pytest.mark.parametrize(
    "row", ["text", [], ["a"], ["a", True, 1.0], ["a", 1, "1"], ["a", 1, True], ["a", 1, 1e300]]
)
def test_a_row_with_wrong_values_is_refused(row: object) -> None:
    with pytest.raises(FormatError):
        list(Message("fdb", {"rows": [row]}).rows("rows", str, int, float))


def test_the_object_is_json_that_other_programs_read() -> None:
    octets = encode("hello", {"version": "1.0"})
    assert json.loads(octets[fmt.HEADER_LEN :]) == {"version": "1.0", "kind": "hello"}
