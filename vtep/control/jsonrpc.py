"""JSON-RPC 2.0 as octets: what a line asks for, and what is answered. It knows no socket.

One message is one line. Whatever arrives, `decode` gives a Message and raises nothing: what is no
request is an item that says so, in the place where its answer belongs (JSON-RPC 2.0, sections 4 to
6). Large results are lists of pages, so that nobody has to make, or hold, one of them whole.
"""

import json
from collections.abc import Iterable, Iterator
from enum import IntEnum
from math import isfinite
from typing import Any, Final

from attrs import frozen

LINE_MAX: Final = 65536
"""Octets of a line that a server reads, without its end."""

BATCH_MAX: Final = 1000
"""Requests in one batch: more would be answered with more than a line's worth."""

EVENT: Final = "monitor.event"
"""The method of the notifications that a subscriber gets."""

Id = str | int | float | None


class Code(IntEnum):
    """Why a request failed: the numbers of section 5.1, and ours from its reserved range."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    """What was asked for makes no sense: a ConfigError there."""
    INTERNAL_ERROR = -32603
    REFUSED = -32000
    """The machine, or the state of things, does not allow it: a VtepError there."""


class RpcError(Exception):
    """A request that fails, with what is said of it in one line."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@frozen
class Request:
    """A call of a method; `id` is None, and `answered` False, for a notification."""

    method: str
    params: dict[str, Any]
    id: Id
    answered: bool


@frozen
class Refusal:
    """What was no request, or can't be called; its id, as far as that could be seen."""

    error: RpcError
    id: Id = None
    answered: bool = True


@frozen
class Message:
    """What one line holds: one item, or those of a batch in their order."""

    items: tuple[Request | Refusal, ...]
    batch: bool = False


@frozen
class Pages:
    """A list as a result, made page by page: each a moment's work."""

    pages: Iterable[list[Any]]


def decode(line: bytes) -> Message:
    """Read a line; raises nothing."""
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
    except RecursionError:
        return _refused(Code.PARSE_ERROR, "parse error: it is nested too deeply")
    except ValueError as error:
        return _refused(Code.PARSE_ERROR, f"parse error: {error}")
    if not isinstance(value, list):
        return Message((_item(value),))
    if not value:
        return _refused(Code.INVALID_REQUEST, "invalid request: an empty batch")
    if len(value) > BATCH_MAX:
        return _refused(Code.INVALID_REQUEST, f"invalid request: a batch of over {BATCH_MAX}")
    return Message(tuple(_item(item) for item in value), batch=True)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _refused(code: Code, message: str) -> Message:
    return Message((Refusal(RpcError(code, message)),))


def _item(value: object) -> Request | Refusal:
    if not isinstance(value, dict):
        return Refusal(RpcError(Code.INVALID_REQUEST, "invalid request: it is no object"))
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
        # By position is valid (section 4.2), but the order of names is nothing to rely on.
        error = RpcError(Code.INVALID_PARAMS, "params: give them by name, as an object")
        return Refusal(error, ident, answered)
    if not isinstance(params, dict):
        return _invalid("its params must be an object", ident)
    return Request(method, params, ident, answered)


def _invalid(why: str, ident: Id = None) -> Refusal:
    return Refusal(RpcError(Code.INVALID_REQUEST, f"invalid request: {why}"), ident)


def encode(value: object) -> bytes:
    """A value as one line of JSON without its end; in ASCII, so that no octet of it is an LF."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def failure(error: RpcError, ident: Id) -> bytes:
    """The answer to a request that failed."""
    told = {"code": int(error.code), "message": str(error)}
    return encode({"jsonrpc": "2.0", "error": told, "id": ident})


def success(result: object, ident: Id) -> Iterator[bytes]:
    """The answer to a request, in pieces that are to be sent one after the other."""
    if not isinstance(result, Pages):
        yield encode({"jsonrpc": "2.0", "result": result, "id": ident})
        return
    before = b'{"jsonrpc":"2.0","id":' + encode(ident) + b',"result":['
    for page in result.pages:
        yield before + encode(page)[1:-1] if page else b""
        before = b"," if page else before
    yield (b"" if before == b"," else before) + b"]}"


def notification(method: str, params: object) -> bytes:
    """A message that wants no answer."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def request(method: str, params: object, ident: Id) -> bytes:
    """A call of a method."""
    return encode({"jsonrpc": "2.0", "method": method, "params": params, "id": ident})
