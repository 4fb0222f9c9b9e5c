"""The connection of `pyvtep top` to a VTEP, which is made again after it was lost."""

from collections.abc import Callable

from vtep.control.client import Client, DisconnectedError
from vtep.control.schema import FdbSample, Status
from vtep.errors import VtepError
from vtep.top.macs import MacRequest


class Source:
    """A client that connects when it is asked. Calls wait for the answer, and never for longer
    than the timeout of the client.

    `connect` returns a client: of the process that serves now, if the former one has ended.
    """

    def __init__(self, connect: Callable[[], Client], vni: int | None = None) -> None:
        self._connect = connect
        self._vni = vni
        self._client: Client | None = None

    def poll(self, asked: MacRequest | None = None) -> tuple[Status, FdbSample | None]:
        """Return the status and, if it is asked for, a sample of MACs.

        Raises: VtepError if there is no answer; the next call connects again. There is no sample
        of a VNI that does not exist any more.
        """
        try:
            if self._client is None:
                self._client = self._connect()
            status = self._client.status(vni=self._vni)
            return status, self._sample(self._client, asked)
        except VtepError:
            self.close()
            raise

    def _sample(self, client: Client, asked: MacRequest | None) -> FdbSample | None:
        if asked is None:
            return None
        try:
            return client.fdb.sample(asked.macs, asked.page, vni=asked.vni)
        except DisconnectedError:
            raise
        except VtepError:
            return None

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
