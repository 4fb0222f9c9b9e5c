"""Socket options of Linux that the standard library has no names for.

The names are the kernel's. Sources: include/uapi/asm-generic/socket.h (SO_*),
include/uapi/linux/{in,in6}.h (IP_*, IPV6_*), linux/udp.h (UDP_*), linux/errqueue.h (SO_EE_*),
linux/sock_diag.h (SK_MEMINFO_*).
"""

from typing import Final

SO_NO_CHECK: Final = 11
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_ATTACH_REUSEPORT_CBPF: Final = 51
SO_MEMINFO: Final = 55

SK_MEMINFO_DROPS: Final = 8
SK_MEMINFO_VARS: Final = 9

IP_PKTINFO: Final = 8
IP_MTU_DISCOVER: Final = 10
IP_RECVERR: Final = 11
IP_MTU: Final = 14
IP_MULTICAST_ALL: Final = 49

IPV6_FLOWINFO: Final = 11
IPV6_MTU_DISCOVER: Final = 23
IPV6_MTU: Final = 24
IPV6_RECVERR: Final = 25
IPV6_MULTICAST_ALL: Final = 29
IPV6_FLOWINFO_SEND: Final = 33
IPV6_RECVPKTINFO: Final = 49
IPV6_PKTINFO: Final = 50
IPV6_DONTFRAG: Final = 62
IPV6_AUTOFLOWLABEL: Final = 70
IPV6_ADDR_PREFERENCES: Final = 72
IPV6_PREFER_SRC_PUBLIC: Final = 2

PMTUDISC_DONT: Final = 0
"""IP_PMTUDISC_DONT and IPV6_PMTUDISC_DONT: clear DF, and fragment to the path MTU."""

PMTUDISC_DO: Final = 2
"""Set DF, and refuse datagrams larger than the path MTU."""

PMTUDISC_PROBE: Final = 3
"""Set DF, and ignore the path MTU."""

SOL_UDP: Final = 17
UDP_NO_CHECK6_TX: Final = 101
UDP_NO_CHECK6_RX: Final = 102
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104

SO_EE_ORIGIN_ICMP: Final = 2
SO_EE_ORIGIN_ICMP6: Final = 3
