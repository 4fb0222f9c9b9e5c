"""Build the objects of the data path from a configuration."""

from vtep.config import Config
from vtep.io.outer_options import OuterHeaderOptions
from vtep.wire.outer_header import InheritPolicy


def outer_header_options(config: Config) -> OuterHeaderOptions:
    """Return the outer header fields that all datagrams of a segment have."""
    first, last = config.srcport
    return OuterHeaderOptions(
        srcport=range(first, last + 1),
        ttl=config.ttl if isinstance(config.ttl, int) else 0,
        tos=config.tos if isinstance(config.tos, int) else 0,
        flowlabel=config.flowlabel if isinstance(config.flowlabel, int) else 0,
        df=config.df == "set",
        udpcsum=config.udpcsum,
        udp6zerocsumtx=config.udp6zerocsumtx,
    )


def inherit_policy(config: Config) -> InheritPolicy:
    """Return the outer header fields that inherit from the inner header of a frame."""
    return InheritPolicy(
        ecn=config.ecn,
        tos=config.tos if isinstance(config.tos, int) else 0,
        inherit_tos=config.tos == "inherit",
        inherit_ttl=config.ttl == "inherit",
        inherit_flowlabel=config.flowlabel == "inherit",
        inherit_df=config.df == "inherit",
    )
