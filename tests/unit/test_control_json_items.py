"""Answers that are parsed while they arrive: however they are cut, the items are the same."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.control import jsonrpc
from vtep.control.json_items import ItemParser
from vtep.control.jsonrpc import Pages, RpcError

ITEMS = st.lists(
    st.dictionaries(st.text(max_size=3), st.text() | st.none() | st.lists(st.integers())),
    max_size=8,
)


def feed(line: bytes, cuts: list[int]) -> tuple[list[Any], ItemParser]:
    parser, items, begin = ItemParser(7), [], 0
    for end in (*sorted(cut % (len(line) + 1) for cut in cuts), len(line)):
        assert not parser.has_ended or begin == len(line)
        items += parser.feed(line[begin:end])
        begin = end
    return items, parser


@given(st.lists(ITEMS, max_size=3), st.lists(st.integers(0, 1 << 16), max_size=9))
def test_a_list_in_pages(pages: list[list[Any]], cuts: list[int]) -> None:
    line = b"".join(jsonrpc.success(Pages(pages), 7)) + b"\n"
    items, parser = feed(line, cuts)
    assert items == [item for page in pages for item in page]
    assert (parser.has_ended, parser.message) == (True, None)


@given(ITEMS, st.lists(st.integers(0, 1 << 16), max_size=9))
def test_any_other_message_is_returned_as_a_whole(result: list[Any], cuts: list[int]) -> None:
    for line in (
        b"".join(jsonrpc.success(result, 7)),
        jsonrpc.failure(RpcError(-32000, "no"), 7),
        jsonrpc.failure(RpcError(-32000, "too many clients"), None),
        b"".join(jsonrpc.success(Pages([result]), 8)),
        b"{}",
    ):
        items, parser = feed(line + b"\n", cuts)
        assert items == []
        assert (parser.has_ended, parser.message) == (True, json.loads(line))


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON\n",
        b'{"jsonrpc":"2.0","id":7,"result":[{"a":1},\n',
        b'{"jsonrpc":"2.0","id":7,"result":[{"a":1]}\n',
        b"\xff\n",
    ],
)
def test_what_is_no_answer_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"end of the list|Expecting|decode"):
        feed(line, [])
