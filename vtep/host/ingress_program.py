"""An eBPF program at the ingress of a device, by traffic control (tc-bpf(8))."""

from vtep.host.devices import need_device_index
from vtep.host.netlink import IPRoute, NetlinkError

_IN6_ADDR_GEN_MODE_NONE = 1
"""From the kernel's include/uapi/linux/if_link.h."""

_CLSACT_INGRESS = "ffff:fff2"
"""TC_H_CLSACT and TC_H_MIN_INGRESS: the ingress hook of the queueing discipline clsact."""


def attach(netlink: IPRoute, device: str, program: int) -> None:
    """Set a device up with an eBPF program that decides about each packet it receives.

    `program` is the descriptor of a loaded program of type BPF_PROG_TYPE_SCHED_CLS.

    Side effects: the device gets no IPv6 link-local address, so that the kernel sends nothing
    through it.

    Raises:
        OSError: there is no such device, or the kernel refused.
    """
    try:
        index = need_device_index(device)
        # Before the device is up, since that is when the kernel generates the address.
        no_address = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE)]}
        family = {"attrs": [("AF_INET6", no_address)]}
        netlink.link("set", index=index, IFLA_AF_SPEC=family)
        netlink.link("set", index=index, state="up")
        netlink.tc("add", "clsact", index)
        netlink.tc(
            *("add-filter", "bpf", index, ":1"),
            fd=program,
            name="pyvtep",
            parent=_CLSACT_INGRESS,
            classid=1,
            direct_action=True,
        )
    except NetlinkError as error:
        raise OSError(error.code, error.args[1]) from error
