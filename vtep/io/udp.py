"""The sockets of this host: the `SocketFactory` of a VTEP outside of tests."""

from typing import TYPE_CHECKING, Final

from vtep.io.path import Path
from vtep.io.receiver import UdpReceiver
from vtep.io.replicator import Replicator

if TYPE_CHECKING:
    from vtep.io.interfaces import SocketFactory


class UdpSockets:
    """Opens UDP sockets in the network namespace of the calling thread."""

    open_receiver: Final = UdpReceiver.open
    open_sender: Final = Path
    open_flooder: Final = Replicator


if TYPE_CHECKING:
    _FACTORY: SocketFactory = UdpSockets()
