"""The connection of the exporter to a running VTEP, which may end, restart and be upgraded."""

from collections.abc import Callable

from vtep.control.client import Client, DisconnectedError
from vtep.control.reconnect import Connector
from vtep.control.schema import Status
from vtep.errors import VtepError

_TIMEOUT_S = 2.0
"""Time for an answer. A VTEP answers in milliseconds; Prometheus gives up a scrape after 10 s by
default, and has to be told before that this VTEP does not answer."""


class StatusSource:
    """A connection that is made when it is needed, and made again when it is broken.

    Without a `path`, it is to the only VTEP of this network namespace, and never to one of another:
    its counters would be taken for those of the one that has ended. `note` is called with a line
    when the VTEP stops answering, and when it answers again.
    """

    def __init__(self, path: str | None, note: Callable[[str], None]) -> None:
        self._connect = Connector(path, timeout=_TIMEOUT_S)
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
        self._change_state(f"pyvtep {status['version']} answers at {self._connect.path}")
        return status

    def check(self) -> None:
        """Raise VtepError if several VTEPs run here and none is named. There may be none yet."""
        self._connect.check()

    def _ask(self) -> Status:
        if self._client is not None:
            try:
                return self._client.status()
            except DisconnectedError:
                # Its process has ended, perhaps since another one has replaced it.
                self.close()
        self._client = self._connect()
        return self._client.status()

    def _change_state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._note(state)

    def close(self) -> None:
        """Disconnect, until the next call of `status`."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
