"""pyvtep: a VXLAN tunnel endpoint in pure Python that needs no kernel VXLAN driver.

from vtep import Config, Vtep

async with Vtep(Config(vni=1, remote="192.0.2.2", tap="vx0")) as vtep:
    await vtep.wait()
"""

from vtep.config import Config
from vtep.engine import Vtep
from vtep.errors import ConfigError, VtepError
from vtep.port import Port

__version__ = "0.1.0"

__all__ = ["Config", "ConfigError", "Port", "Vtep", "VtepError", "__version__"]
