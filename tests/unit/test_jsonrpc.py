"""JSON-RPC 2.0 lines: the examples of the specification, and everything that is none."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.control import jsonrpc
from vtep.control.jsonrpc import Code, InvalidRequest, Pages, Request, RpcError


def only(line: bytes) -> Request | InvalidRequest:
    message = jsonrpc.decode(line)
    assert not message.batch
    (item,) = message.items
    return item


def refused(line: bytes) -> tuple[int, Any]:
    item = only(line)
    assert isinstance(item, InvalidRequest)
    assert item.answered
    assert "\n" not in str(item.error)
    return item.error.code, item.id


def test_a_request() -> None:
    line = b'{"jsonrpc": "2.0", "method": "fdb.show", "params": {"vni": 1}, "id": 7}\n'
    assert only(line) == Request("fdb.show", {"vni": 1}, 7, answered=True)


def test_a_notification() -> None:
    assert only(b'{"jsonrpc": "2.0", "method": "x"}') == Request("x", {}, None, answered=False)


def test_an_id_of_null_is_answered() -> None:
    line = b'{"jsonrpc": "2.0", "method": "x", "id": null}'
    assert only(line) == Request("x", {}, None, answered=True)


@pytest.mark.parametrize("ident", ["", "seven", 0, -1, 1.5, 1 << 80])
def test_ids_come_back_as_they_were(ident: Any) -> None:
    line = json.dumps({"jsonrpc": "2.0", "method": "x", "id": ident}).encode()
    item = only(line)
    assert (item.id, type(item.id)) == (ident, type(ident))
    answer = json.loads(b"".join(jsonrpc.success(1, item.id)))
    assert answer == {"jsonrpc": "2.0", "result": 1, "id": ident}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"fdb show",
        b'{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
        b'{"jsonrpc": "2.0", "method',
        b'[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0"',
        b"\xff\xfe",
        b'{"jsonrpc": "2.0", "method": "x", "params": {"a": NaN}}',
        b'{"jsonrpc": "2.0", "method": "x", "params": {"a": -Infinity}}',
        b"1" * 5000,
        b"[" * 60000,
        b'{"a":' * 12000,
        b"\0",
    ],
    ids=range(13),
)
def test_parse_errors(line: bytes) -> None:
    assert refused(line) == (Code.PARSE_ERROR, None)


@pytest.mark.parametrize(
    ("line", "ident"),
    [
        (b"1", None),
        (b'"x"', None),
        (b"[]", None),
        (b"null", None),
        (b"{}", None),
        (b'{"jsonrpc": "2.0", "method": 1, "params": "bar"}', None),
        (b'{"jsonrpc": "2.0", "method": 1, "id": 3}', 3),
        (b'{"jsonrpc": "1.0", "method": "x", "id": 3}', 3),
        (b'{"method": "x", "id": 3}', 3),
        (b'{"jsonrpc": "2.0", "id": 3}', 3),
        (b'{"jsonrpc": "2.0", "method": "x", "params": 1, "id": 3}', 3),
        (b'{"jsonrpc": "2.0", "method": "x", "params": null, "id": 3}', 3),
        (b'{"jsonrpc": "2.0", "method": "x", "id": {}}', None),
        (b'{"jsonrpc": "2.0", "method": "x", "id": true}', None),
        (b'{"jsonrpc": "2.0", "method": "x", "id": 1e999}', None),
        (b"[" + b",".join([b"1"] * 1001) + b"]", None),
    ],
    ids=range(16),
)
def test_invalid_requests(line: bytes, ident: Any) -> None:
    assert refused(line) == (Code.INVALID_REQUEST, ident)


def test_params_by_position_are_refused() -> None:
    line = b'{"jsonrpc": "2.0", "method": "x", "params": [1], "id": 3}'
    assert refused(line) == (Code.INVALID_PARAMS, 3)
    item = only(b'{"jsonrpc": "2.0", "method": "x", "params": [1]}')
    assert isinstance(item, InvalidRequest)
    assert not item.answered


def test_a_batch_keeps_its_order_and_its_invalid_items() -> None:
    message = jsonrpc.decode(b'[1, {"jsonrpc": "2.0", "method": "x", "id": 2}, {"id": 3}]')
    assert message.batch
    assert [type(item) for item in message.items] == [InvalidRequest, Request, InvalidRequest]
    assert [item.id for item in message.items] == [None, 2, 3]


def test_a_failure() -> None:
    answer = json.loads(jsonrpc.failure(RpcError(Code.REFUSED, "vni 7: no such VNI"), 4))
    assert answer == {
        "jsonrpc": "2.0",
        "error": {"code": -32000, "message": "vni 7: no such VNI"},
        "id": 4,
    }


@given(st.lists(st.lists(st.integers() | st.text())))
def test_pages_are_one_list(pages: list[list[Any]]) -> None:
    pieces = list(jsonrpc.success(Pages(pages), "x"))
    assert len(pieces) == len(pages) + 1
    answer = json.loads(b"".join(pieces))
    assert answer["result"] == [item for page in pages for item in page]
    assert (answer["jsonrpc"], answer["id"]) == ("2.0", "x")


@given(st.binary())
def test_any_octets_are_read(line: bytes) -> None:
    for item in jsonrpc.decode(line).items:
        if isinstance(item, InvalidRequest):
            jsonrpc.failure(item.error, item.id)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(("jsonrpc", "id"), JSON)))
def test_any_json_is_answered_by_one_line_of_json(value: Any) -> None:
    for item in jsonrpc.decode(json.dumps(value).encode()).items:
        if isinstance(item, InvalidRequest):
            answer = jsonrpc.failure(item.error, item.id)
        else:
            answer = b"".join(jsonrpc.success(item.params, item.id))
        assert b"\n" not in answer
        json.loads(answer, parse_constant=pytest.fail)
