"""Parses an answer whose result is a long list while it arrives, in constant memory."""

import json
from typing import Any, Final

_DECODE: Final = json.JSONDecoder().raw_decode


class ItemParser:
    """The parser of one line of a server: the answer to a request, or any other message.

    The items of a result in pages, which are objects, are returned as they are complete. Any other
    line is a `message` once it is complete.
    """

    def __init__(self, ident: int) -> None:
        self.message: Any = None
        """The whole message, if it is none with a result in pages."""
        self.has_ended = False
        """True at the end of the line."""
        self._head = f'{{"jsonrpc":"2.0","id":{ident},"result":['
        self._text = ""
        self._is_list: bool | None = None

    def feed(self, octets: bytes) -> list[Any]:
        """Parse the next octets. Returns: the items that they complete.

        Raises: ValueError for a line that is no JSON.
        """
        self._text += octets.decode()  # The server escapes what is not ASCII.
        if self._is_list is None:
            head = self._head
            if len(self._text) < len(head) and not self._text.endswith("\n"):
                return []
            self._is_list = self._text.startswith(head)
            if self._is_list:
                self._text = self._text[len(head) :]
        if not self._is_list:
            if self._text.endswith("\n"):
                self.message = json.loads(self._text)
                self.has_ended = True
            return []
        items, at = [], 0
        while self._text.startswith(("{", ","), at):
            begin = at + (self._text[at] == ",")
            try:
                item, at = _DECODE(self._text, begin)
            except ValueError:  # It goes on in the next octets.
                break
            items.append(item)
        self._text = self._text[at:]
        if self._text.endswith("\n"):
            if self._text != "]}\n":
                raise ValueError("the end of the list is missing")
            self.has_ended = True
        return items
