"""The methods of the network driver, as the engine calls them."""

from collections.abc import Mapping
from typing import Any

from vtep.docker.client import EngineClient
from vtep.docker.plugin.dispatch import Method
from vtep.docker.plugin.store import JsonStore


class NetworkDriver:
    """The network driver of one engine; it owns the networks and their endpoints."""

    def __init__(self, store: JsonStore, engine: EngineClient) -> None:
        self._store = store
        self._engine = engine

    @property
    def methods(self) -> dict[str, Method]:
        """The methods by their names."""
        methods: dict[str, Method] = {"GetCapabilities": self._get_capabilities}
        return {f"NetworkDriver.{name}": method for name, method in methods.items()}

    def _get_capabilities(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        # Local: each engine has its own networks, which need no swarm. Their containers reach
        # those of other hosts all the same, which is what the second scope says.
        return {"Scope": "local", "ConnectivityScope": "global"}
