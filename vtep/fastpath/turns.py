"""The compiled turns. To import this module is to compile them, or to load them from the cache."""

from vtep.fastpath.receive import ReceiveTurn
from vtep.fastpath.transmit import TransmitTurn

__all__ = ["ReceiveTurn", "TransmitTurn"]
