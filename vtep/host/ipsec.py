"""IPsec policies (XFRM) of this host."""

import errno
import socket
import struct
from struct import Struct

# From the kernel's include/uapi/linux/netlink.h and xfrm.h.
_NETLINK_XFRM = 6
_NLM_F_REQUEST = 1
_XFRM_MSG_GETSPDINFO = 0x25

_REQUEST = Struct("=IHHIII")
"""struct nlmsghdr, then the flags that XFRM_MSG_GETSPDINFO takes, which are 0."""

_ATTRIBUTE_HEADER_LEN = 4

_SPD_INFO = Struct("=6I")
"""struct xfrmu_spdinfo: numbers of policies for input, output and forwarding, then of those of
single sockets."""

_REPLY_MAX = 512
_TIMEOUT_S = 1.0


def has_output_policies() -> bool:
    """Return True if this host has IPsec policies for outgoing packets, or may have some.

    Returns: True, too, if the kernel refuses to say. A wrong False would send packets in clear text
    that a policy encrypts.
    """
    request = _REQUEST.pack(_REQUEST.size, _XFRM_MSG_GETSPDINFO, _NLM_F_REQUEST, 1, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_XFRM) as query:
            query.settimeout(_TIMEOUT_S)
            query.send(request)
            reply = query.recv(_REPLY_MAX)
        # XFRMA_SPD_INFO is the first attribute (build_spdinfo() in net/xfrm/xfrm_user.c).
        output: int
        of_sockets: int
        _, output, _, _, of_sockets, _ = _SPD_INFO.unpack_from(
            reply, _REQUEST.size + _ATTRIBUTE_HEADER_LEN
        )
    except OSError as error:
        # A kernel without IPsec has no such protocol.
        return error.errno != errno.EPROTONOSUPPORT
    except struct.error:  # The reply is an error message.
        return True
    return output > 0 or of_sockets > 0
