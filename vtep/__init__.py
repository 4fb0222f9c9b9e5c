"""pyvtep: a VXLAN tunnel endpoint (VTEP, RFC 7348) in pure Python, without the kernel's driver.

This is the public interface::

    from vtep import Config, Vtep

    async with Vtep(Config(vni=1, remote="192.0.2.2", tap="vx0")) as vtep:
        await vtep.wait()
"""

from typing import TYPE_CHECKING, Any

from vtep.errors import ConfigError, VtepError

if TYPE_CHECKING:
    from vtep.config import Config
    from vtep.daemon.port import Port
    from vtep.daemon.vtep import Vtep

__version__ = "0.1.0"

__all__ = ["Config", "ConfigError", "Port", "Vtep", "VtepError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public classes at their first use (PEP 562).

    Client commands start faster without them. And `__main__`, which is imported after this, must
    run before the slow imports: it makes Ctrl-C end the program without a traceback.
    """
    if name == "Config":
        from vtep import config  # noqa: PLC0415

        return config.Config
    if name not in ("Port", "Vtep"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vtep.daemon import vtep  # noqa: PLC0415

    return getattr(vtep, name)
