"""pyvtep: a VXLAN tunnel endpoint in pure Python that needs no kernel VXLAN driver.

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
    """Import what takes its time only when it is asked for.

    A command that steers does without what forwards, and `__main__` is there before all of it.
    """
    if name == "Config":
        from vtep import config  # noqa: PLC0415

        return config.Config
    if name not in ("Port", "Vtep"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vtep.daemon import vtep  # noqa: PLC0415

    return getattr(vtep, name)
