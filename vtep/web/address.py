"""The address to listen on, and the Host headers that are accepted there."""

from ipaddress import IPv4Address, IPv6Address, ip_address

from attrs import frozen

from vtep.errors import ConfigError, shown

_PORT_MAX = 65535
_LOCALHOST = "localhost"


@frozen
class ListenAddress:
    """An IP address and a TCP port to listen on; port 0 stands for any that is free."""

    ip: IPv4Address | IPv6Address
    port: int

    @classmethod
    def parse(cls, text: str) -> "ListenAddress":
        """Parse IP:PORT; an IPv6 address is in brackets. Raises: ConfigError."""
        host, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > _PORT_MAX:
            raise ConfigError(
                f"--listen {shown(text)}: needs an address and a port, such as 127.0.0.1:8479"
            )
        bracketed = host.startswith("[") and host.endswith("]")
        try:
            ip = ip_address(
                host[1:-1] if bracketed else "127.0.0.1" if host == _LOCALHOST else host
            )
        except ValueError:
            raise ConfigError(
                f"--listen {shown(text)}: {shown(host)} is no IP address; name one of this host"
            ) from None
        if (ip.version == 6) is not bracketed:
            raise ConfigError(
                f"--listen {shown(text)}: write an IPv6 address in brackets, an IPv4 address "
                "without, such as [::1]:8479"
            )
        return cls(ip, int(port))

    def __str__(self) -> str:
        """Format it as in a URL."""
        return f"[{self.ip}]:{self.port}" if self.ip.version == 6 else f"{self.ip}:{self.port}"

    def accepts(self, host: str) -> bool:
        """Return whether a Host header names this server by an address, or as localhost.

        A page of another site can make its own name resolve to 127.0.0.1 and then read what a
        server there answers (DNS rebinding). But its requests have that name in their Host header:
        so a name other than localhost is refused. The port may be another one, as with `ssh -L`.
        """
        name, colon, port = host.rpartition(":")
        if not colon or host.endswith("]"):
            name = host
        elif not (port.isascii() and port.isdigit()):
            return False
        if name.lower() == _LOCALHOST:
            return True
        try:
            ip = ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
        except ValueError:
            return False
        return ip.is_loopback or not self.ip.is_loopback
