"""JSON-RPC 2.0: the codec of the control socket, without a socket.

One message is one line. `decode` accepts any octets: an item of a batch that is not a valid request
becomes an InvalidRequest, at the place where its answer belongs (JSON-RPC 2.0, sections 4 to 6).
Large results are lists of pages, so that neither end has to hold one of them as a whole.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from math import isfinite
from typing import Any, Final

from attrs import frozen

LINE_MAX: Final = 65536
"""Octets of a line that a server reads, without its end."""

BATCH_MAX: Final = 1000
"""Requests in one batch, which bounds its answer."""

EVENT: Final = "monitor.event"
"""Method name of the notifications that a subscriber gets."""

Id = str | int | float | None


class Code(IntEnum):
    """Error codes: those of JSON-RPC 2.0, section 5.1, and two of the range for servers."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    """The request makes no sense on any machine: a ConfigError."""
    INTERNAL_ERROR = -32603
    REFUSED = -32000
    """The machine or the state of the VTEP does not allow it: a VtepError."""
    HANDED_OVER = -32001
    """Another process has taken over. Nothing was done: connect again, and repeat the request."""


class RpcError(Exception):
    """The failure of a request: a code and a message of one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@frozen
class Request:
    """A valid request; for a notification, `id` is None and `answered` is False."""

    method: str
    params: dict[str, Any]
    id: Id
    answered: bool


@frozen
class InvalidRequest:
    """An item that is not a valid request, with the error to answer and its id, if it has one."""

    error: RpcError
    id: Id = None
    answered: bool = True


@frozen
class RpcMessage:
    """The contents of a line: one item, or the items of a batch in their order."""

    items: tuple[Request | InvalidRequest, ...]
    batch: bool = False


@frozen
class Pages:
    """A result that is a list, and is made a page at a time, each in about a millisecond."""

    pages: Iterable[list[Any]]


@frozen
class PagedObject:
    """A result that is an object with one long list, which is made a page at a time as `Pages` are.

    `rest` returns the other members. It is called after the last page.
    """

    name: str
    pages: Iterable[list[Any]]
    rest: Callable[[], Mapping[str, object]]

    def whole(self) -> dict[str, Any]:
        """Return the object with the whole list."""
        return {self.name: [item for page in self.pages for item in page], **self.rest()}


@frozen
class OctetStream:
    """A result behind which the connection is no JSON any more, but a stream of octets."""

    result: Any
    source: Any
    """The source of the octets: a `vtep.control.connection.OctetSource`."""


def decode(line: bytes) -> RpcMessage:
    """Parse a line. Whatever it holds, this raises nothing."""
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
    except RecursionError:
        return _refused(Code.PARSE_ERROR, "parse error: it is nested too deeply")
    except ValueError as error:
        # Of a number with thousands of digits, the rest is advice for a Python program.
        return _refused(Code.PARSE_ERROR, f"parse error: {str(error).partition('; use sys.')[0]}")
    if not isinstance(value, list):
        return RpcMessage((_item(value),))
    if not value:
        return _refused(Code.INVALID_REQUEST, "invalid request: an empty batch")
    if len(value) > BATCH_MAX:
        return _refused(Code.INVALID_REQUEST, f"invalid request: a batch of over {BATCH_MAX}")
    return RpcMessage(tuple(_item(item) for item in value), batch=True)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _refused(code: Code, message: str) -> RpcMessage:
    return RpcMessage((InvalidRequest(RpcError(code, message)),))


def _item(value: object) -> Request | InvalidRequest:
    if not isinstance(value, dict):
        return InvalidRequest(
            RpcError(Code.INVALID_REQUEST, "invalid request: it is not an object")
        )
    ident = value.get("id")
    plain = isinstance(ident, str | int | float | None) and not isinstance(ident, bool)
    if not plain or (isinstance(ident, float) and not isfinite(ident)):
        return _invalid("its id must be a string, a number or null")
    if value.get("jsonrpc") != "2.0":
        return _invalid('it must have "jsonrpc": "2.0"', ident)
    method = value.get("method")
    if not isinstance(method, str):
        return _invalid("its method must be a string", ident)
    answered = "id" in value
    params = value.get("params", {})
    if isinstance(params, list):
        # Parameters by position are valid (section 4.2), but we promise no order of ours.
        error = RpcError(Code.INVALID_PARAMS, "params: give them by name, as an object")
        return InvalidRequest(error, ident, answered)
    if not isinstance(params, dict):
        return _invalid("its params must be an object", ident)
    return Request(method, params, ident, answered)


def _invalid(why: str, ident: Id = None) -> InvalidRequest:
    return InvalidRequest(RpcError(Code.INVALID_REQUEST, f"invalid request: {why}"), ident)


def encode(value: object) -> bytes:
    """Format a value as JSON, without a line end; json.dumps escapes each LF in a string."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def failure(error: RpcError, ident: Id) -> bytes:
    """Format the answer to a request that failed."""
    described = {"code": int(error.code), "message": str(error)}
    return encode({"jsonrpc": "2.0", "error": described, "id": ident})


def success(result: object, ident: Id) -> Iterator[bytes]:
    """Format the answer to a request, in pieces that are to be sent one after the other."""
    head = b'{"jsonrpc":"2.0","id":' + encode(ident) + b',"result":'
    if isinstance(result, Pages):
        yield from _in_pages(result.pages, head + b"[", lambda: b"]}")
    elif isinstance(result, PagedObject):
        head += b"{" + encode(result.name) + b":["
        yield from _in_pages(result.pages, head, lambda: b"]," + encode(result.rest())[1:] + b"}")
    else:
        yield encode({"jsonrpc": "2.0", "result": result, "id": ident})


def _in_pages(
    pages: Iterable[list[Any]], before: bytes, after: Callable[[], bytes]
) -> Iterator[bytes]:
    """Format the items of a list, between octets; `after` makes those behind the last page."""
    for page in pages:
        yield before + encode(page)[1:-1] if page else b""
        before = b"," if page else before
    yield (b"" if before == b"," else before) + after()


def notification(method: str, params: object) -> bytes:
    """Format a message that gets no answer."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def request(method: str, params: object, ident: Id) -> bytes:
    """Format a request."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params, "id": ident})
