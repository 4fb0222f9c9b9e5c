"""`--log-format json`: log records as JSON, one object a line."""

import json
import logging
import re
from datetime import datetime
from typing import Any, Final

FIELDS: Final = "vtep_fields"
"""Name of the attribute of a record with fields that are not in its message."""

_CUT = "..."

_VNI = re.compile(r"\bvni (\d{1,8})\b")
_DEV = re.compile(r"\bvni \d{1,8} on ([^\s:;,]{1,15})|(?<![-\w])dev ([^\s:;,]{1,15})")
_DROP = re.compile(r"(?:dropped )?\d+ x ([a-z0-9_]+): ")
_ADDRESS = r"(\d[\d.]*\.\d+|[0-9a-fA-F]*:[0-9a-fA-F:.]*(?:%[\w.-]+)?)"
_LAST_SOURCE = re.compile(rf"\blast: {_ADDRESS}")
_REMOTE = re.compile(
    rf"\b(?:remote|loop through|flooding with|path to|socket to|held at|(?:GSO|gso|tnl)[a-z ]* to)"
    rf" {_ADDRESS}"
)


def fields_of(text: str) -> dict[str, Any]:
    """Return what a message says of VNIs, devices, remotes and drops."""
    fields: dict[str, Any] = {}
    vnis = [int(vni) for vni in dict.fromkeys(_VNI.findall(text))]
    if len(vnis) == 1:
        fields["vni"] = vnis[0]
    elif vnis:
        fields["vnis"] = vnis
    if dev := _DEV.search(text):
        fields["dev"] = dev[1] or dev[2]
    if drop := _DROP.match(text):
        fields["reason"] = drop[1]
    if remote := (_LAST_SOURCE if drop else _REMOTE).search(text):
        # A sentence may go on behind an address.
        fields["remote"] = remote[1].rstrip(":.")
    return fields


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its end."""
        return self.shortened(record, None)

    def shortened(self, record: logging.LogRecord, octets: int | None) -> str:
        """Return the line of a record, whose message is cut if the line would be longer."""
        text = record.getMessage()
        line = _line(record, text)
        while octets is not None and len(line) > octets and text:
            # The octets of a character are not known, so this is the part of the average one.
            text = text[: max(0, len(text) * octets // len(line) - len(_CUT))]
            line = _line(record, f"{text}{_CUT}")
        return line


def _line(record: logging.LogRecord, text: str) -> str:
    made = {
        "timestamp": datetime.fromtimestamp(record.created)
        .astimezone()
        .isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        # File names may have octets that are not UTF-8, which Python keeps as lone surrogates.
        "message": text.encode(errors="replace").decode(),
        **fields_of(text),
        **getattr(record, FIELDS, {}),
    }
    # The only control character that json leaves as it is.
    return json.dumps(made).replace("\x7f", "\\u007f")
