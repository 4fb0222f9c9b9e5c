"""Errors of BGP: the codes of NOTIFICATION messages, and their names.

The registries are those of IANA, "BGP Error (Notification) Codes" and its subcodes.
"""

from enum import IntEnum

from vtep.errors import VtepError

SHUTDOWN_TEXT_MAX = 255
"""Octets of a shutdown communication in UTF-8 (RFC 9003, section 2)."""


class ErrorCode(IntEnum):
    """The code of a NOTIFICATION (RFC 4271, section 4.5; RFC 9687, section 4.2)."""

    MESSAGE_HEADER = 1
    OPEN = 2
    UPDATE = 3
    HOLD_TIMER_EXPIRED = 4
    FSM = 5
    CEASE = 6
    ROUTE_REFRESH = 7
    SEND_HOLD_TIMER_EXPIRED = 8


class HeaderError(IntEnum):
    """Subcodes of `ErrorCode.MESSAGE_HEADER` (RFC 4271, section 6.1)."""

    NOT_SYNCHRONIZED = 1
    BAD_LENGTH = 2
    BAD_TYPE = 3


class OpenError(IntEnum):
    """Subcodes of `ErrorCode.OPEN` (RFC 4271, section 6.2; RFC 5492; RFC 9234)."""

    UNSPECIFIC = 0
    UNSUPPORTED_VERSION = 1
    BAD_PEER_AS = 2
    BAD_BGP_IDENTIFIER = 3
    UNSUPPORTED_PARAMETER = 4
    UNACCEPTABLE_HOLD_TIME = 6
    UNSUPPORTED_CAPABILITY = 7
    ROLE_MISMATCH = 11


class UpdateError(IntEnum):
    """Subcodes of `ErrorCode.UPDATE` (RFC 4271, section 6.3)."""

    MALFORMED_ATTRIBUTES = 1
    UNRECOGNIZED_WELL_KNOWN = 2
    MISSING_WELL_KNOWN = 3
    ATTRIBUTE_FLAGS = 4
    ATTRIBUTE_LENGTH = 5
    INVALID_ORIGIN = 6
    INVALID_NEXT_HOP = 8
    OPTIONAL_ATTRIBUTE = 9
    INVALID_NETWORK = 10
    MALFORMED_AS_PATH = 11


class FsmError(IntEnum):
    """Subcodes of `ErrorCode.FSM` (RFC 6608): the state in which a message was not expected."""

    UNSPECIFIC = 0
    IN_OPEN_SENT = 1
    IN_OPEN_CONFIRM = 2
    IN_ESTABLISHED = 3


class Cease(IntEnum):
    """Subcodes of `ErrorCode.CEASE` (RFC 4486, RFC 8538, RFC 9384)."""

    MAXIMUM_PREFIXES = 1
    ADMINISTRATIVE_SHUTDOWN = 2
    PEER_DECONFIGURED = 3
    ADMINISTRATIVE_RESET = 4
    CONNECTION_REJECTED = 5
    OTHER_CONFIGURATION_CHANGE = 6
    COLLISION_RESOLUTION = 7
    OUT_OF_RESOURCES = 8
    HARD_RESET = 9
    BFD_DOWN = 10


class RefreshError(IntEnum):
    """Subcodes of `ErrorCode.ROUTE_REFRESH` (RFC 7313, section 5)."""

    BAD_LENGTH = 1


_CODES = {
    1: "message header error",
    2: "OPEN message error",
    3: "UPDATE message error",
    4: "hold timer expired",
    5: "finite state machine error",
    6: "Cease",
    7: "ROUTE-REFRESH message error",
    8: "send hold timer expired",
}

_SUBCODES = {
    1: {1: "connection not synchronized", 2: "bad message length", 3: "bad message type"},
    2: {
        1: "unsupported version number",
        2: "bad peer AS",
        3: "bad BGP identifier",
        4: "unsupported optional parameter",
        5: "authentication failure",
        6: "unacceptable hold time",
        7: "unsupported capability",
        11: "role mismatch",
    },
    3: {
        1: "malformed attribute list",
        2: "unrecognized well-known attribute",
        3: "missing well-known attribute",
        4: "attribute flags error",
        5: "attribute length error",
        6: "invalid ORIGIN attribute",
        7: "AS routing loop",
        8: "invalid NEXT_HOP attribute",
        9: "optional attribute error",
        10: "invalid network field",
        11: "malformed AS_PATH",
    },
    5: {
        1: "unexpected message in state OpenSent",
        2: "unexpected message in state OpenConfirm",
        3: "unexpected message in state Established",
    },
    6: {
        1: "maximum number of prefixes reached",
        2: "administrative shutdown",
        3: "peer deconfigured",
        4: "administrative reset",
        5: "connection rejected",
        6: "other configuration change",
        7: "connection collision resolution",
        8: "out of resources",
        9: "hard reset",
        10: "BFD down",
    },
    7: {1: "invalid message length"},
}


def name_of(code: int, subcode: int) -> str:
    """Return the name of an error, as "Cease (6/2): administrative shutdown"."""
    name = f"{_CODES.get(code, 'unknown error')} ({code}/{subcode})"
    detail = _SUBCODES.get(code, {}).get(subcode)
    return f"{name}: {detail}" if detail else name


class BgpError(VtepError):
    """An error that ends a BGP session.

    `code`, `subcode` and `data` are those of the NOTIFICATION that the peer must be sent.
    """

    def __init__(self, code: int, subcode: int = 0, data: bytes = b"", text: str = "") -> None:
        self.code = code
        self.subcode = subcode
        self.data = data
        self.text = text
        super().__init__(f"{name_of(code, subcode)}{'; ' if text else ''}{text}")


def pack_shutdown(text: str) -> bytes:
    """Pack a shutdown communication, the data of a Cease (RFC 9003, section 2).

    A longer text is truncated to 255 octets, between two characters.
    """
    octets = text.encode("utf-8", "replace")[:SHUTDOWN_TEXT_MAX]
    octets = octets.decode("utf-8", "ignore").encode()
    return bytes((len(octets),)) + octets


def parse_shutdown(data: bytes) -> str:
    """Return the text of a shutdown communication; "" if there is none, or a malformed one.

    Characters that cannot be printed are replaced by "?", since the text is logged (RFC 9003,
    section 5).
    """
    if not data or len(data) < 1 + data[0]:
        return ""
    text = data[1 : 1 + data[0]].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in text)
