"""The connection of the exporter to a running VTEP, which may end, restart and be upgraded."""

from collections.abc import Callable
from pathlib import Path

from vtep.control.choice import choose
from vtep.control.client import Client, DisconnectedError, candidates, find
from vtep.control.schema import Status
from vtep.errors import VtepError

_TIMEOUT_S = 2.0
"""Time for an answer. A VTEP answers in milliseconds; Prometheus gives up a scrape after 10 s by
default, and has to be told before that this VTEP does not answer."""


class StatusSource:
    """A connection that is made when it is needed, and made again when it is broken.

    Without a `path`, it is to the only VTEP of this network namespace. `note` is called with a line
    when the VTEP stops answering, and when it answers again.
    """

    def __init__(self, path: str | None, note: Callable[[str], None]) -> None:
        self._given = None if path is None else Path(path)
        self._path = self._given
        self._note = note
        self._client: Client | None = None
        self._state: str | None = None

    def status(self) -> Status:
        """Return the status of the VTEP. Raises: VtepError if it does not answer."""
        try:
            status = self._ask()
        except VtepError as error:
            self.close()
            self._change_state(f"no status: {error}")
            raise
        self._change_state(f"pyvtep {status['version']} answers at {self._path}")
        return status

    def check(self) -> None:
        """Raise VtepError if several VTEPs run here and none is named. There may be none yet."""
        if self._given is None and (found := candidates()):
            choose(found, changes=False, by_segment=False)

    def _ask(self) -> Status:
        if self._client is not None:
            try:
                return self._client.status()
            except DisconnectedError:
                # Its process has ended, perhaps since another one has replaced it.
                self.close()
        self._client = self._connect()
        return self._client.status()

    def _connect(self) -> Client:
        if self._path is not None:
            try:
                return Client(self._path, timeout=_TIMEOUT_S)
            except DisconnectedError:
                if self._given is not None:
                    raise
        # A restarted VTEP may have another TAP, and its socket another name.
        (found,) = find(changes=False, by_segment=False)
        if not found.here:
            self._note(f"{found.process} is in another network namespace: {found.path}")
        self._path = found.path
        return Client(found.path, timeout=_TIMEOUT_S)

    def _change_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._note(state)

    def close(self) -> None:
        """Disconnect, until the next call of `status`."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
